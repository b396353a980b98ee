"""Decoding packed NF4 codes inside a Triton kernel. On a GPU by shuffles, of NVIDIA's only: every thread holds one of
the 16 values, and a value costs a shift and a shuffle. A load from a table takes three times as many instructions."""

from __future__ import annotations

import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]


@triton.jit
def own_entry(code, like):
    """Every thread's entry of the 16 codes, that of its lane modulo 16, in the shape of `like`."""
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 lane; .reg .b64 at;
        mov.u32 lane, %laneid; and.b32 lane, lane, 15; mul.wide.u32 at, lane, 4; add.s64 at, at, $1;
        ld.global.nc.b32 $0, [at];
        }""",
        "=r,l", [code.to(tl.int64) + tl.zeros(like.shape, tl.int64)], dtype=tl.float32, is_pure=True, pack=1,
    )  # fmt: skip


@triton.jit
def _looked_up(byte, entry):
    """The values of the upper and lower four bits of every byte. A shuffle reads the entry of another lane, and only
    the lower four bits of its index count."""
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 t<7>;
        shr.b32 t0, $8, 4; shr.b32 t1, $8, 8; shr.b32 t2, $8, 12; shr.b32 t3, $8, 16;
        shr.b32 t4, $8, 20; shr.b32 t5, $8, 24; shr.b32 t6, $8, 28;
        shfl.sync.idx.b32 $0, $9, t0, 0x101f, 0xffffffff;
        shfl.sync.idx.b32 $4, $9, $8, 0x101f, 0xffffffff;
        shfl.sync.idx.b32 $1, $9, t2, 0x101f, 0xffffffff;
        shfl.sync.idx.b32 $5, $9, t1, 0x101f, 0xffffffff;
        shfl.sync.idx.b32 $2, $9, t4, 0x101f, 0xffffffff;
        shfl.sync.idx.b32 $6, $9, t3, 0x101f, 0xffffffff;
        shfl.sync.idx.b32 $3, $9, t6, 0x101f, 0xffffffff;
        shfl.sync.idx.b32 $7, $9, t5, 0x101f, 0xffffffff;
        }""",
        "=r,=r,=r,=r,=r,=r,=r,=r,r,r,r,r,r", [byte, entry],
        dtype=(tl.float32, tl.float32), is_pure=True, pack=4,
    )  # fmt: skip


@triton.jit
def decoded(byte, scales, code, entry, SHUFFLE: tl.constexpr, BLOCK: tl.constexpr, DTYPE: tl.constexpr):
    """The weights (rows, 2 · bytes) in DTYPE that bytes (rows, bytes) and scales (rows, blocks) stand for. entry: of
    `own_entry`, where shuffles look the codes up."""
    ROWS: tl.constexpr = byte.shape[0]
    BYTES: tl.constexpr = byte.shape[1]
    scale = tl.broadcast_to(scales[:, :, None], (ROWS, 2 * BYTES // BLOCK, BLOCK // 2)).reshape(ROWS, BYTES)
    if SHUFFLE:
        upper, lower = _looked_up(byte, entry)
    else:
        upper, lower = tl.load(code + (byte >> 4).to(tl.int32)), tl.load(code + (byte & 15).to(tl.int32))
    return tl.join((upper * scale).to(DTYPE), (lower * scale).to(DTYPE)).reshape(ROWS, 2 * BYTES)

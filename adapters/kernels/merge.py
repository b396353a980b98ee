"""The merge of many matrices in one Triton launch: read the base, add the rank-r update, round, write in place.

Every base element is read once and every served element written once, and nothing else of that size exists. The base is
either in 16 bits (4 bytes moved per parameter) or packed NF4 (2.5 bytes). At rank 8 it is arithmetic that takes the
time, 30 instructions an element, so a program computes U Σ R once for several steps over its rows. The arithmetic is
that of `adapters/merge.py` in the same order without fused multiply-add, so both give the same bits. Pointers travel as
integers; their common alignment is a compile-time constant, without which every load would be two bytes wide. Left out:
other dtypes than bf16 and float16, which the torch version covers.
"""

from __future__ import annotations

import math

import torch
import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]
from torch import Tensor

from adapters.base import NF4_BLOCK, Base, Packed
from adapters.config import AdapterError
from adapters.kernels.nf4 import decoded, own_entry
from adapters.merge import DROPPED_BITS

TYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
# A program's rows, columns of one of its steps, steps, and warps: the fastest of fourteen on an H200.
ROWS, COLUMNS, STEPS, WARPS = 4, 512, 4, 2


@triton.jit
def _mix(x):
    """The murmur3 finaliser."""
    x = (x ^ (x >> 16)) * 0x85EBCA6B
    x = (x ^ (x >> 13)) * 0xC2B2AE35
    return x ^ (x >> 16)


@triton.jit
def _outer(left, mixing, j: tl.constexpr, row, rows, k, RANK: tl.constexpr):
    of_left = tl.load(left + row * RANK + j, mask=row < rows, other=0.0)
    of_mixing = tl.load(mixing + j * RANK + k, mask=k < RANK, other=0.0)
    return of_left[:, None] * of_mixing[None, :]


@triton.jit
def _combined(left, mixing, row, rows, RANK: tl.constexpr, PADDED: tl.constexpr):
    """The columns of U Σ R at the rows `row`, (Σ_j left[:, j] R[j, k]) for each k, as a tuple."""
    k = tl.arange(0, PADDED)
    whole = _outer(left, mixing, 0, row, rows, k, RANK)
    for j in tl.static_range(1, RANK):
        whole = whole + _outer(left, mixing, j, row, rows, k, RANK)
    columns = (tl.sum(tl.where((k == 0)[None, :], whole, 0.0), axis=1),)
    for i in tl.static_range(1, RANK):
        columns = columns + (tl.sum(tl.where((k == i)[None, :], whole, 0.0), axis=1),)  # type: ignore[assignment]
    return columns


@triton.jit(do_not_specialize=["offset"])
def _merge_tiles(
    tile_module,
    first_tile,
    shapes,
    bases,
    absmaxes,
    targets,
    lefts,
    rights,
    mixings,
    salts,
    code,
    offset,
    RANK: tl.constexpr,
    PADDED: tl.constexpr,
    NF4: tl.constexpr,
    BLOCK: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    DTYPE: tl.constexpr,
    DROPPED: tl.constexpr,
    ALIGN: tl.constexpr,
    EVEN: tl.constexpr,
    SHUFFLE: tl.constexpr,
    BR: tl.constexpr,
    BC: tl.constexpr,
    STEPS: tl.constexpr,
):
    pid = tl.program_id(0) + offset
    module = tl.load(tile_module + pid)
    local = pid - tl.load(first_tile + module)
    rows = tl.load(shapes + 2 * module)
    columns = tl.multiple_of(tl.load(shapes + 2 * module + 1), ALIGN)
    tiles_across = tl.cdiv(columns, BC * STEPS)
    first_column = (local % tiles_across) * (BC * STEPS)
    row = (local // tiles_across) * BR + tl.arange(0, BR)
    left = tl.load(lefts + module).to(tl.pointer_type(tl.float32))
    right = tl.multiple_of(tl.load(rights + module).to(tl.pointer_type(tl.float32)), ALIGN)
    target = tl.multiple_of(tl.load(targets + module).to(tl.pointer_type(DTYPE)), ALIGN)
    combined = _combined(left, mixings + module * RANK * RANK, row, rows, RANK, PADDED)
    pairs = tl.multiple_of((columns + 1) // 2, max(ALIGN // 2, 1))  # neighbours share a byte and a random number
    if NF4:
        packed = tl.multiple_of(tl.load(bases + module).to(tl.pointer_type(tl.uint8)), ALIGN)
        absmax = tl.load(absmaxes + module).to(tl.pointer_type(tl.float32))
        entry = own_entry(code, tl.zeros((BR, BC // 2), tl.float32)) if SHUFFLE else code
    else:
        dense = tl.multiple_of(tl.load(bases + module).to(tl.pointer_type(DTYPE)), ALIGN)
    if STOCHASTIC:
        salt = tl.load(salts + module).to(tl.uint32) * 0x9E3779B1
        row_bits = _mix(row.to(tl.uint32) ^ salt)

    for start in range(first_column, min(first_column + BC * STEPS, columns), BC):
        column = start + tl.arange(0, BC)
        half = start // 2 + tl.arange(0, BC // 2)
        position = (row * columns)[:, None] + column[None, :]
        inside = (row < rows)[:, None] & (column < columns)[None, :]
        if NF4:
            pair = (row * pairs)[:, None] + half[None, :]
            blocks = columns // BLOCK
            block = start // BLOCK + tl.arange(0, BC // BLOCK)
            if EVEN:
                byte = tl.load(packed + pair)
                scales = tl.load(absmax + (row * blocks)[:, None] + block[None, :])
            else:
                byte = tl.load(packed + pair, mask=(row < rows)[:, None] & (half < pairs)[None, :], other=0)
                block_inside = (row < rows)[:, None] & (block < blocks)[None, :]
                scales = tl.load(absmax + (row * blocks)[:, None] + block[None, :], mask=block_inside, other=0.0)
            base = decoded(byte, scales, code, entry, SHUFFLE, BLOCK, DTYPE).to(tl.float32)
        elif EVEN:
            base = tl.load(dense + position).to(tl.float32)
        else:
            base = tl.load(dense + position, mask=inside, other=0.0).to(tl.float32)

        delta = combined[0][:, None] * _across(right, column, columns, EVEN)
        for k in tl.static_range(1, RANK):
            delta += combined[k][:, None] * _across(right + k * columns, column, columns, EVEN)

        total = base + delta
        if STOCHASTIC:
            x = (row_bits[:, None] ^ _mix(half.to(tl.uint32) + salt)[None, :]) * 0x9E3779B1
            x = x ^ (x >> 16)
            bits = tl.join(x & 0xFFFF, x >> 16).reshape(BR, BC)
            merged = total.to(tl.uint32, bitcast=True) + (bits >> (16 - DROPPED))
            if not NF4:  # a packed base holds no negative zero, the one value that adding zero would change
                merged = tl.where(delta == 0.0, base.to(tl.uint32, bitcast=True), merged)
            value = ((merged >> DROPPED) << DROPPED).to(tl.float32, bitcast=True).to(DTYPE)
        else:
            value = (total if NF4 else tl.where(delta == 0.0, base, total)).to(DTYPE)
        if EVEN:
            tl.store(target + position, value)
        else:
            tl.store(target + position, value, mask=inside)


@triton.jit
def _across(right, column, columns, EVEN: tl.constexpr):
    if EVEN:
        return tl.load((right + column)[None, :])
    return tl.load((right + column)[None, :], mask=(column < columns)[None, :], other=0.0)


class FusedRefresh:
    """Prepared pointers and tiles of all matrices; calling it with R (n, r, r) float32 writes them.

    targets: bf16 or float16 (out, in) with contiguous rows, written in place. bases: tensors of the same shapes and
    dtype, or packed NF4. left (out, r), right (r, in) float32. All on one CUDA device; the tensors are kept alive here.
    """

    def __init__(
        self,
        targets: list[Tensor],
        bases: list[Base],
        lefts: list[Tensor],
        rights: list[Tensor],
        salts: list[int],
        stochastic: bool,
    ) -> None:
        device = targets[0].device
        lefts, rights = [left.contiguous() for left in lefts], [right.contiguous() for right in rights]
        packed = [base for base in bases if isinstance(base, Packed)]
        if packed and (len(packed) < len(bases) or any(base.state.quant_type != "nf4" for base in packed)):
            raise AdapterError("a merge on the GPU takes dense or NF4 weights, not both and no other 4-bit type")
        dtype = targets[0].dtype
        if any(base.dtype != dtype or not _plain(base) for base in bases):
            raise AdapterError(f"a merge into {dtype} on the GPU takes contiguous weights of the same type")
        data = [base.codes if isinstance(base, Packed) else base for base in bases]
        absmax = [base.absmax for base in packed] or data
        self._kept = (targets, data, absmax, lefts, rights)
        columns = [target.shape[1] for target in targets]
        tiles = [triton.cdiv(m, ROWS) * triton.cdiv(n, COLUMNS * STEPS) for m, n in (t.shape for t in targets)]
        counts = torch.tensor(tiles)
        self.tiles = tiles
        self.first = (counts.cumsum(0) - counts).tolist()
        modules = torch.repeat_interleave(torch.arange(len(tiles), dtype=torch.int32), counts)
        self.tables = [
            modules.to(device),
            torch.tensor(self.first, dtype=torch.int32, device=device),
            torch.tensor([list(target.shape) for target in targets], dtype=torch.int32, device=device),
            *(pointers(tensors, device) for tensors in (data, absmax, targets, lefts, rights)),
        ]
        self.salts = torch.tensor(salts, dtype=torch.int64, device=device)
        self.code = packed[0].state.code.to(device, torch.float32) if packed else torch.zeros(16, device=device)
        aligned = [tensor.data_ptr() for tensors in (data, targets, rights) for tensor in tensors]
        self.options = {
            "RANK": lefts[0].shape[1],
            "PADDED": triton.next_power_of_2(lefts[0].shape[1]),
            "NF4": bool(packed),
            "BLOCK": NF4_BLOCK,
            "STOCHASTIC": stochastic,
            "DTYPE": TYPES[dtype],
            "DROPPED": DROPPED_BITS[dtype],
            "ALIGN": math.gcd(64, *columns, *aligned),
            "EVEN": all(target.shape[0] % ROWS == 0 and target.shape[1] % COLUMNS == 0 for target in targets),
            "SHUFFLE": device.type == "cuda",
            "BR": ROWS,
            "BC": COLUMNS,
            "STEPS": STEPS,
            "num_warps": WARPS,
            "enable_fp_fusion": False,
        }

    def __call__(self, mixings: Tensor, indices: range) -> None:
        """Write the matrices `indices`, which follow one another."""
        count, offset = sum(self.tiles[indices.start : indices.stop]), self.first[indices.start]
        _merge_tiles[(count,)](*self.tables, mixings.contiguous(), self.salts, self.code, offset, **self.options)


def _plain(base: Base) -> bool:
    return isinstance(base, Packed) or base.is_contiguous()


def pointers(tensors: list[Tensor], device: torch.device) -> Tensor:
    return torch.tensor([tensor.data_ptr() for tensor in tensors], dtype=torch.int64, device=device)

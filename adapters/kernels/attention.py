"""Kernels of `pipeline/rollout/vllm/attention.py`: attention of one new token a sequence that reads a prompt once
for all completions of a group.

vLLM's prefix cache lets the completions of a prompt have its blocks of keys and values in common, but its kernels read
them for each completion anew. Here sequences that follow each other in the batch and begin with the same blocks make a
tile. One program multiplies the queries of a whole tile with the keys of what they share (as Hydragen
does, arXiv 2402.05099), another those of one sequence with its own; log-sum-exps put the two together. Since Hopper the
two kernels run beside each other (programmatic dependent launch).
What is shared is found in the block tables by the GPU itself, once a step, so a captured graph stays valid.

The kernels also turn the new token's queries and key by its rotary embedding and write its key and value into the
cache, which takes vLLM two more kernels.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait  # type: ignore[import-not-found]

ROWS = 8  # sequences of a tile at most
SHARED = {"KEYS": 128, "num_warps": 4, "num_stages": 3}  # keys read at a time, and how: the fastest on an H200
OWN = {"KEYS": 32, "num_warps": 1, "num_stages": 3}
LOG2_E = 1.4426950408889634


@triton.jit
def _same_blocks(tables, stride, lengths, same, BLOCK: tl.constexpr, WIDTH: tl.constexpr):
    """Leading blocks that a row has in common with the row before, of those that both had filled before this step."""
    row, place = tl.program_id(0), tl.arange(0, WIDTH)
    before = tl.maximum(row - 1, 0)
    filled = tl.maximum(tl.minimum(tl.load(lengths + row), tl.load(lengths + before)) - 1, 0) // BLOCK
    count = tl.where(row == 0, 0, filled)
    for start in range(0, count, WIDTH):
        at = start + place
        mine = tl.load(tables + row.to(tl.int64) * stride + at, mask=at < filled, other=-1)
        other = tl.load(tables + before.to(tl.int64) * stride + at, mask=at < filled, other=-1)
        count = tl.minimum(count, tl.min(tl.where(mine == other, filled, at), axis=0))
    tl.store(same + row, count)


@triton.jit
def _larger(left, right):
    return tl.maximum(left, right)


@triton.jit
def _cut(same, starts, tiles, rows, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """The first row of every tile; `rows` in the places of tiles that there are not. And the number of tiles."""
    row = tl.arange(0, WIDTH)
    mine = tl.load(same + row, mask=row < rows, other=0)
    before = tl.load(same + row - 1, mask=(row > 0) & (row <= rows), other=0)
    after = tl.load(same + row + 1, mask=row + 1 < rows, other=0)
    begins = (mine == 0) | (mine < before) | (mine < after)  # as it has more in common with another neighbour
    start = tl.associative_scan(tl.where(begins, row, 0), 0, _larger)
    begins = ((row - start) % ROWS == 0) & (row < rows)
    tile = tl.cumsum(begins.to(tl.int32), 0) - 1
    count = tl.sum(begins.to(tl.int32), axis=0)
    tl.store(starts + tile, row, mask=begins)
    tl.store(starts + row, rows, mask=row >= count)
    tl.store(starts + WIDTH, rows)
    tl.store(tiles, count)


@triton.jit
def _share(same, starts, shared, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    """Tokens that all rows of a tile have in common, at each of its rows."""
    tile, place = tl.program_id(0), tl.arange(0, ROWS)
    first, end = tl.load(starts + tile), tl.load(starts + tile + 1)
    follows = (place > 0) & (first + place < end)
    least = tl.min(tl.load(same + first + place, mask=follows, other=1 << 30), axis=0)
    tokens = tl.where(end - first > 1, least * BLOCK, 0)
    tl.store(shared + first + place, tl.zeros([ROWS], tl.int32) + tokens, mask=first + place < end)


@triton.jit
def _turned(x, place, angles, position, real, WIDTH: tl.constexpr, TURN: tl.constexpr):
    """The heads at x + `place` (N,), turned by the cosines and sines of `position` (N,), and rounded once; as they are
    unless TURN. In pairs of numbers half a width apart: Su et al., "RoFormer", arXiv 2104.09864."""
    width = tl.arange(0, WIDTH)
    own = tl.load(x + place[:, None] + width[None, :], mask=real[:, None], other=0.0)
    if not TURN:
        return own
    half: tl.constexpr = WIDTH // 2
    other = tl.load(x + place[:, None] + ((width + half) % WIDTH)[None, :], mask=real[:, None], other=0.0)
    angle = angles + position.to(tl.int64)[:, None] * WIDTH + (width % half)[None, :]
    cos, sin = tl.load(angle, mask=real[:, None], other=0.0), tl.load(angle + half, mask=real[:, None], other=0.0)
    sin = tl.where((width < half)[None, :], -sin, sin)
    return (own.to(tl.float32) * cos + other.to(tl.float32) * sin).to(own.dtype)


@triton.jit
def _newest(
    q, key, value, angles, position, of_head, stride_block, stride_token, table, scale,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, TURN: tl.constexpr,
):  # fmt: skip
    """Maximum, total and sums that `_attend` goes on with: of the new token at `position` alone, which is written into
    the cache. q (queries, WIDTH)."""
    one, width = tl.arange(0, 1), tl.arange(0, WIDTH)
    k = _turned(key, one, angles, position + one, one == 0, WIDTH, TURN)
    v = tl.load(value + width)[None, :]
    block = tl.load(table + position // BLOCK).to(tl.int64)
    at = of_head + block * stride_block + (position % BLOCK) * stride_token + width[None, :]
    tl.store(at, k)
    tl.store(at + WIDTH, v)
    score = tl.sum(q.to(tl.float32) * k.to(tl.float32), axis=1) * scale
    heads: tl.constexpr = q.shape[0]
    return score, tl.full([heads], 1.0, tl.float32), tl.broadcast_to(tl.trans(v.to(tl.float32)), [WIDTH, heads])


@triton.jit
def _attend(
    q, m, total, sums, cache, stride_block, stride_token, table, start, end, scale,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """One round over the keys from `start` to at most `end` of a sequence. Queries are columns, q (WIDTH, queries), as
    tensor cores multiply 16 rows by 8 columns at least. Of every query: the largest score so far, in bits, the sum of
    powers of two, and the sum (WIDTH, queries) of the values that they weigh."""
    key, width = start + tl.arange(0, KEYS), tl.arange(0, WIDTH)
    block = tl.load(table + key // BLOCK, mask=key < end, other=0).to(tl.int64)
    at = (cache + block * stride_block + (key % BLOCK) * stride_token)[:, None] + width[None, :]
    k = tl.load(at, mask=(key < end)[:, None], other=0.0)
    v = tl.load(at + WIDTH, mask=(key < end)[:, None], other=0.0)
    score = tl.where((key < end)[:, None], tl.dot(k, q, input_precision="ieee") * scale, float("-inf"))
    larger = tl.maximum(m, tl.max(score, axis=0))
    weight = tl.exp2(score - larger[None, :])
    kept = tl.exp2(m - larger)
    total = total * kept + tl.sum(weight, axis=0)
    sums = tl.dot(tl.trans(v), weight.to(v.dtype), sums * kept[None, :], input_precision="ieee")
    return larger, total, sums


@triton.jit
def _attend_many(
    q, m, total, sums, cache, stride_block, stride_token, table, start, end, scale,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """As `_attend`, with queries as rows, q and sums (queries, WIDTH), which is faster for many of them."""
    key, width = start + tl.arange(0, KEYS), tl.arange(0, WIDTH)
    block = tl.load(table + key // BLOCK, mask=key < end, other=0).to(tl.int64)
    at = cache + block * stride_block + (key % BLOCK) * stride_token
    k = tl.load(at[None, :] + width[:, None], mask=(key < end)[None, :], other=0.0)
    v = tl.load(at[:, None] + (WIDTH + width)[None, :], mask=(key < end)[:, None], other=0.0)
    score = tl.where((key < end)[None, :], tl.dot(q, k, input_precision="ieee") * scale, float("-inf"))
    larger = tl.maximum(m, tl.max(score, axis=1))
    weight = tl.exp2(score - larger[:, None])
    kept = tl.exp2(m - larger)
    total = total * kept + tl.sum(weight, axis=1)
    sums = tl.dot(weight.to(v.dtype), v, sums * kept[:, None], input_precision="ieee")
    return larger, total, sums


@triton.jit
def _shared_part(
    query, stride_query, angles, cache, stride_block, stride_head, stride_token, tables, stride_table, lengths, starts,
    tiles, shared, partial, partial_lse, scale,
    HEADS: tl.constexpr, GROUP: tl.constexpr, PADDED: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    TURN: tl.constexpr, BESIDE: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """All queries of a head of keys and of every n-th tile, for n programs, against what its rows share. BESIDE:
    `_own_part` may start as soon as all programs have."""
    if BESIDE:
        gdc_launch_dependents()
    head, place, width = tl.program_id(1), tl.arange(0, ROWS * PADDED), tl.arange(0, WIDTH)
    for tile in range(tl.program_id(0), tl.load(tiles), tl.num_programs(0)):
        first, end = tl.load(starts + tile), tl.load(starts + tile + 1)
        tokens = tl.load(shared + first)
        if tokens > 0:
            row, member = first + place // PADDED, place % PADDED
            real = (row < end) & (member < GROUP)
            heads = head * GROUP + member
            position = tl.load(lengths + row, mask=real, other=1) - 1
            q = _turned(query, row.to(tl.int64) * stride_query + heads * WIDTH, angles, position, real, WIDTH, TURN)
            m = tl.full([ROWS * PADDED], float("-inf"), tl.float32)
            total = tl.zeros([ROWS * PADDED], tl.float32)
            sums = tl.zeros([ROWS * PADDED, WIDTH], tl.float32)
            table, of_head = tables + first.to(tl.int64) * stride_table, cache + head * stride_head
            for start in range(0, tokens, KEYS):
                m, total, sums = _attend_many(
                    q, m, total, sums, of_head, stride_block, stride_token, table, start, tokens, scale, WIDTH, BLOCK,
                    KEYS,
                )  # fmt: skip
            to = row * HEADS + heads
            tl.store(partial + to[:, None] * WIDTH + width[None, :], sums / total[:, None], mask=real[:, None])
            tl.store(partial_lse + to, m + tl.log2(total), mask=real)


@triton.jit
def _own_part(
    query, stride_query, key, stride_key, value, stride_value, out, angles, cache, stride_block, stride_head,
    stride_token, tables, stride_table, lengths, shared, partial, partial_lse, scale,
    HEADS: tl.constexpr, GROUP: tl.constexpr, PADDED: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    TURN: tl.constexpr, BESIDE: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """The queries of a sequence and a head of keys, against what is its own; put together with `_shared_part`, which
    may still run BESIDE this one, but began when all kernels before it had ended."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    length, tokens = tl.load(lengths + row), tl.load(shared + row)
    member, width = tl.arange(0, PADDED), tl.arange(0, WIDTH)
    real, heads = member < GROUP, head * GROUP + member
    to = out + (row * HEADS + heads)[:, None] * WIDTH + width[None, :]
    if length == 0:  # a row that fills up a graph
        tl.store(to, tl.zeros([PADDED, WIDTH], out.dtype.element_ty), mask=real[:, None])
        return
    newest = length - 1
    position = newest + tl.zeros([PADDED], tl.int32)
    q = _turned(query, row * stride_query + heads * WIDTH, angles, position, real, WIDTH, TURN)
    table, of_head = tables + row * stride_table, cache + head * stride_head
    m, total, sums = _newest(
        q, key + row * stride_key + head * WIDTH, value + row * stride_value + head * WIDTH, angles, newest, of_head,
        stride_block, stride_token, table, scale, WIDTH, BLOCK, TURN,
    )  # fmt: skip
    for start in range(tokens, newest, KEYS):
        m, total, sums = _attend(
            tl.trans(q), m, total, sums, of_head, stride_block, stride_token, table, start, newest, scale, WIDTH,
            BLOCK, KEYS,
        )  # fmt: skip
    sums = tl.trans(sums)
    if BESIDE:
        gdc_wait()  # until `_shared_part` has ended, also where nothing of it is read: the next kernel waits for this
    if tokens > 0:
        place = row * HEADS + heads
        lse = tl.load(partial_lse + place, mask=real, other=0.0)
        others = tl.load(partial + place[:, None] * WIDTH + width[None, :], mask=real[:, None], other=0.0)
        larger = tl.maximum(m, lse)
        kept, added = tl.exp2(m - larger), tl.exp2(lse - larger)
        total = total * kept + added
        sums = sums * kept[:, None] + others * added[:, None]
    tl.store(to, (sums / total[:, None]).to(out.dtype.element_ty), mask=real[:, None])


class SharedPrompts:
    """What the rows of a batch share, and room for what their queries find there.

    rows: of a batch at most. heads: of queries; keys: heads of keys; width: of a head, a power of two. block: tokens of
    a block of the cache. programs: that the GPU runs at a time. Its tensors keep their places, as captured graphs need.
    """

    def __init__(
        self, rows: int, heads: int, keys: int, width: int, block: int, programs: int, device: torch.device
    ) -> None:
        self.block, self.most_tiles = block, triton.next_power_of_2(rows)
        self.programs = max(1, programs // keys), keys
        self.beside = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
        self.same = torch.zeros(rows, dtype=torch.int32, device=device)
        self.shared = torch.zeros(rows, dtype=torch.int32, device=device)
        self.starts = torch.zeros(self.most_tiles + 1, dtype=torch.int32, device=device)
        self.tiles = torch.zeros(1, dtype=torch.int32, device=device)
        self.partial = torch.zeros(rows, heads, width, dtype=torch.float32, device=device)
        self.lse = torch.zeros(rows, heads, dtype=torch.float32, device=device)

    def find(self, tables: Tensor, lengths: Tensor) -> None:
        """Cut a batch into tiles. tables: the blocks of every row, (rows, blocks) int32. lengths: tokens of every row,
        with the new one, (rows,) int32; 0 for a row that is only there to fill up a graph."""
        rows = len(lengths)
        _same_blocks[(rows,)](tables, tables.stride(0), lengths, self.same, BLOCK=self.block, WIDTH=64)
        _cut[(1,)](self.same, self.starts, self.tiles, rows, ROWS=ROWS, WIDTH=self.most_tiles)
        _share[(rows,)](self.same, self.starts, self.shared, BLOCK=self.block, ROWS=ROWS)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, angles: Tensor | None, cache: Tensor, tables: Tensor,
        lengths: Tensor, scale: float, out: Tensor,
    ) -> None:  # fmt: skip
        """softmax(scale · q Kᵀ) V of every row into `out`, for the tables and lengths of the last `find`; K and V with
        the row's new token, which is written into the cache as well.

        query (rows, heads, width), key and value (rows, heads of keys, width), 16 bits, heads side by side, not turned
        yet unless `angles` is None; these are cosines, then sines, of every position, (positions, width) float32.
        cache: keys beside values, (blocks, heads of keys, block, 2 · width). out (rows, heads, width), contiguous.
        """
        (rows, heads, width), keys = query.shape, cache.shape[1]
        group = heads // keys
        padded = triton.next_power_of_2(max(2, group))
        shape = {"HEADS": heads, "GROUP": group, "WIDTH": width, "BLOCK": self.block, "TURN": angles is not None}
        shape["BESIDE"] = self.beside
        angles = query if angles is None else angles
        places = angles, cache, *cache.stride()[:3], tables, tables.stride(0), lengths
        partial, scale = (self.partial, self.lse), scale * LOG2_E
        _shared_part[self.programs](
            query, query.stride(0), *places, self.starts, self.tiles, self.shared, *partial, scale,
            PADDED=padded, ROWS=ROWS, **shape, **SHARED,
        )  # fmt: skip
        _own_part[(rows, keys)](
            query, query.stride(0), key, key.stride(0), value, value.stride(0), out, *places, self.shared, *partial,
            scale, PADDED=max(8, padded), **shape, **OWN, launch_pdl=self.beside,
        )  # fmt: skip

"""Attention of one new token of few sequences, in one kernel: it turns the token's query and key, writes its key and
value into the cache, and attends.

In a step of few sequences a GPU waits for one short kernel after the other: vLLM's takes one for the rotation, one for
the cache, one for parts of the keys and one that puts these together. Here a program turns the queries of a sequence
and a head of keys and attends to a share of the keys; the one that ends last puts the shares together, in their order,
so equal arguments give equal bits. The newest key and value come from registers.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]
from torch import Tensor

from adapters.kernels.attention import LOG2_E, _attend, _newest, _turned

MOST_SHARES = 8  # of the keys of a sequence
LAYOUT = {"KEYS": 128, "num_warps": 4, "num_stages": 3}  # keys read at a time, and how: the fastest on an H200


@triton.jit
def _step(
    query, stride_query, key, stride_key, value, stride_value, out, angles, cache, stride_block, stride_head,
    stride_token, tables, stride_table, lengths, partial, partial_max, partial_total, arrivals, scale,
    GROUP: tl.constexpr, PADDED: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, TURN: tl.constexpr,
    SHARES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    row, head, share = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + row)
    member, width = tl.arange(0, PADDED), tl.arange(0, WIDTH)
    real, heads = member < GROUP, head * GROUP + member
    to = out + (row * tl.num_programs(1) * GROUP + heads)[:, None] * WIDTH + width[None, :]
    if length == 0:  # a row that fills up a graph
        tl.store(to, tl.zeros([PADDED, WIDTH], out.dtype.element_ty), mask=real[:, None])
        return
    keys = tl.cdiv(tl.cdiv(length, SHARES), KEYS) * KEYS
    shares = tl.cdiv(length, keys)
    if share >= shares:
        return
    of_head, table, newest = cache + head * stride_head, tables + row * stride_table, length - 1
    position = newest + tl.zeros([PADDED], tl.int32)
    q = _turned(query, row * stride_query + heads * WIDTH, angles, position, real, WIDTH, TURN)
    m = tl.full([PADDED], float("-inf"), tl.float32)
    total = tl.zeros([PADDED], tl.float32)
    sums = tl.zeros([WIDTH, PADDED], tl.float32)
    if share == shares - 1:
        m, total, sums = _newest(
            q, key + row * stride_key + head * WIDTH, value + row * stride_value + head * WIDTH, angles, newest,
            of_head, stride_block, stride_token, table, scale, WIDTH, BLOCK, TURN,
        )  # fmt: skip
    end = tl.minimum((share + 1) * keys, newest)
    for start in range(share * keys, end, KEYS):
        m, total, sums = _attend(
            tl.trans(q), m, total, sums, of_head, stride_block, stride_token, table, start, end, scale, WIDTH, BLOCK,
            KEYS,
        )  # fmt: skip
    sums = tl.trans(sums)
    if SHARES > 1 and shares > 1:
        whole = row * tl.num_programs(1) + head
        place = (whole * SHARES + share) * PADDED + member
        tl.store(partial_max + place, m)
        tl.store(partial_total + place, total)
        tl.store(partial + place[:, None] * WIDTH + width[None, :], sums, mask=real[:, None])
        tl.debug_barrier()  # all threads have written before the program says that it has
        if tl.atomic_add(arrivals + whole, 1) != shares - 1:
            return
        tl.store(arrivals + whole, 0)
        m = tl.full([PADDED], float("-inf"), tl.float32)
        total = tl.zeros([PADDED], tl.float32)
        sums = tl.zeros([PADDED, WIDTH], tl.float32)
        for s in tl.static_range(SHARES):
            place = (whole * SHARES + s) * PADDED + member
            there = s < shares
            other = tl.load(partial_max + place, mask=there, other=float("-inf"), cache_modifier=".cg")
            others = tl.load(
                partial + place[:, None] * WIDTH + width[None, :], mask=real[:, None] & there, other=0.0,
                cache_modifier=".cg",
            )  # fmt: skip
            larger = tl.maximum(m, other)
            kept, added = tl.exp2(m - larger), tl.exp2(other - larger)
            total = total * kept + added * tl.load(
                partial_total + place, mask=there, other=0.0, cache_modifier=".cg"
            )
            sums = sums * kept[:, None] + others * added[:, None]
            m = larger
    tl.store(to, (sums / total[:, None]).to(out.dtype.element_ty), mask=real[:, None])


class FewSequences:
    """Room for the shares of a step of up to `rows` sequences.

    heads: of queries; keys: heads of keys; width: of a head, a power of two. block: tokens of a block of the cache.
    programs: that keep the GPU busy. Its tensors keep their places, as captured graphs need.
    """

    def __init__(
        self, rows: int, heads: int, keys: int, width: int, block: int, programs: int, device: torch.device
    ) -> None:
        self.block, self.programs = block, programs
        self.padded = max(8, triton.next_power_of_2(heads // keys))  # as tensor cores multiply
        most = max(row * keys * self.shares(row * keys) for row in range(1, rows + 1)) * self.padded
        self.partial = torch.zeros(most, width, dtype=torch.float32, device=device)
        self.of_each = torch.zeros(2, most, dtype=torch.float32, device=device)
        self.arrivals = torch.zeros(rows * keys, dtype=torch.int32, device=device)  # 0 between calls

    def shares(self, pairs: int) -> int:
        """Shares of the keys of each of so many pairs of a sequence and a head of keys: the largest power of two that
        `programs` allow, at most `MOST_SHARES`."""
        wanted = max(1, self.programs // pairs)
        return min(MOST_SHARES, 1 << wanted.bit_length() - 1)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, angles: Tensor | None, cache: Tensor, tables: Tensor,
        lengths: Tensor, scale: float, out: Tensor,
    ) -> None:  # fmt: skip
        """As `SharedPrompts.attend`, without a `find` before."""
        (rows, heads, width), keys = query.shape, cache.shape[1]
        shares = self.shares(rows * keys)
        _step[(rows, keys, shares)](
            query, query.stride(0), key, key.stride(0), value, value.stride(0), out,
            query if angles is None else angles, cache, *cache.stride()[:3], tables, tables.stride(0), lengths,
            self.partial, *self.of_each, self.arrivals, scale * LOG2_E,
            GROUP=heads // keys, PADDED=self.padded, WIDTH=width, BLOCK=self.block, TURN=angles is not None,
            SHARES=shares, **LAYOUT,
        )  # fmt: skip

"""A prompt that the prefix cache holds whole is not read again but for its last token.

vLLM takes what is in the cache by whole blocks, and needs the last token of a prompt computed to draw the next one. So
it reads the last block again, into a block of its own, where a prompt fills its blocks: for a prompt of 256 tokens 16
for every completion but the first. Here such a completion takes the last block as well, and computes one token. It
writes that token's key and value where the same ones are already, or are being written in the same pass.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.core.kv_cache_manager import KVCacheBlocks, KVCacheManager


def find_whole_prompts(manager: KVCacheManager) -> None:
    """Let `manager`, of one group of layers that attend to everything, find the last block of a prompt, too."""
    (of_blocks,) = manager.coordinator.single_type_managers
    find, size = manager.get_computed_blocks, of_blocks.block_size

    def found(request: Any) -> tuple[KVCacheBlocks, int, int]:
        blocks, count, boundary = find(request)
        rest = request.block_hashes[count // size :]
        if len(rest) != 1 or count + size != request.num_tokens or request.skip_reading_prefix_cache:
            return blocks, count, boundary
        last = manager.block_pool.get_cached_block(rest[0], [of_blocks.kv_cache_group_id])
        if last is None:
            return blocks, count, boundary
        return manager.create_kv_cache_blocks(([*blocks.blocks[0], *last],)), request.num_tokens - 1, boundary

    manager.get_computed_blocks = found  # type: ignore[method-assign]
    of_blocks._has_partial_local_hit = lambda *_: False  # type: ignore[method-assign]  # it would copy the last block

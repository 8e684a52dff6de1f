"""The bytes that all pages of an engine may take, and what a sequence takes of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from kvfold.plugins.contract.errors import CapacityError
from kvfold.runtime.engine.slabs import bytes_of_slabs
from kvfold.runtime.memory.horizon import horizons

if TYPE_CHECKING:
    from kvfold.plugins.contract.fold_plan import FoldPlan
    from kvfold.runtime.runtime_config import RuntimeConfig

DEFAULT_KV_CACHE_BYTES = 1 << 30


def pages_of_sequence(plan: FoldPlan, length: int, chunk: int) -> dict[str, int]:
    """Pages of each group that one sequence of up to `length` tokens takes, `chunk` of them a step.

    A global group holds all of it; a local group its running window, a step's chunk, and as much again for
    a tail kept in the tree.
    Example: 8192 tokens, pages of 16, window 1024, 4 sinks, chunks of 512: 512 and 2 * 98 = 196.
    """
    return {law.name: law.peak_pages(length, chunk) * (2 if law.is_local else 1) for law in horizons(plan)}


def kv_cache_bytes(
    plan: FoldPlan, slabs: Mapping[str, int], config: RuntimeConfig, max_context_length: int
) -> int:
    """The budget of all groups: what the configuration says, or what its sequences need, at most 1 GiB.

    Args:
        plan: of the engine.
        slabs: pages of a slab of each group.
        config: what it may take, and how many sequences run at once.
        max_context_length: of a sequence, in tokens.

    Raises:
        CapacityError: the budget does not hold the least step, a page of tokens.
    """
    chunk = min(config.max_num_batched_tokens, max_context_length)
    full = bytes_of_slabs(plan, pages_of_sequence(plan, max_context_length, chunk), slabs)
    size = min(plan.page_size, max_context_length)
    least = bytes_of_slabs(plan, {law.name: law.peak_pages(size, size) for law in horizons(plan)}, slabs)
    enough = max(least, min(config.max_num_seqs * full, DEFAULT_KV_CACHE_BYTES))
    budget = config.kv_cache_bytes or enough
    if budget < least:
        raise CapacityError(
            f"kv_cache_bytes is {budget:,}, and {size} tokens already take {least:,}; raise kv_cache_bytes"
        )
    return budget

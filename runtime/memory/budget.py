"""The bytes that all pages of an engine may take, and what a sequence takes of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from kvfold.plugins.contract.errors import CapacityError
from kvfold.runtime.memory.horizon import horizons

if TYPE_CHECKING:
    from kvfold.plugins.contract.fold_plan import FoldPlan
    from kvfold.runtime.runtime_config import RuntimeConfig

DEFAULT_KV_CACHE_BYTES = 1 << 30


def bytes_of_sequence(plan: FoldPlan, length: int, chunk: int) -> int:
    """Bytes of the pages that hold one sequence of up to `length` tokens, `chunk` of them a step.

    A global group holds all of it; a local group its running window, a step's chunk, and as much again for
    a tail kept in the tree.
    Example: 8192 tokens, pages of 16, window 1024, 4 sinks, chunks of 512: 512 pages and 2 * 98 = 196.
    """
    return bytes_of_pages(
        plan,
        {law.name: law.peak_pages(length, chunk) * (2 if law.is_local else 1) for law in horizons(plan)},
    )


def bytes_of_pages(plan: FoldPlan, pages: Mapping[str, int]) -> int:
    """Bytes of so many pages of each group."""
    return sum(pages[group.name] * group.page_bytes(plan.page_size) for group in plan.groups)


def kv_cache_bytes(plan: FoldPlan, config: RuntimeConfig, max_context_length: int) -> int:
    """The budget of all pages: what the configuration says, or what its sequences need, at most 1 GiB.

    Raises:
        CapacityError: the budget does not hold the least step, a page of tokens.
    """
    chunk = min(config.max_num_batched_tokens, max_context_length)
    full = config.max_num_seqs * bytes_of_sequence(plan, max_context_length, chunk)
    budget = config.kv_cache_bytes or min(full, DEFAULT_KV_CACHE_BYTES)
    size = min(plan.page_size, max_context_length)
    least = bytes_of_pages(plan, {law.name: law.peak_pages(size, size) for law in horizons(plan)})
    if budget < least:
        raise CapacityError(
            f"kv_cache_bytes is {budget}, and {size} tokens already take {least}; raise kv_cache_bytes"
        )
    return budget

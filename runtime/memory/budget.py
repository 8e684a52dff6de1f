"""How many pages each pool gets: for whole sequences, as many as a budget of bytes buys."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvfold.plugins.contract.errors import CapacityError
from kvfold.runtime.memory.horizon import horizons

if TYPE_CHECKING:
    from kvfold.plugins.contract.fold_plan import FoldPlan
    from kvfold.runtime.runtime_config import RuntimeConfig

DEFAULT_KV_CACHE_BYTES = 1 << 30


def pages_of_sequence(plan: FoldPlan, length: int, chunk: int) -> dict[str, int]:
    """Pages of each group's pool that hold one sequence of up to `length` tokens, `chunk` of them a step.

    A global group holds all of it; a local group its running window, a step's chunk, and as much again for
    a tail kept in the tree.
    Example: 8192 tokens, pages of 16, window 1024, 4 sinks, chunks of 512: 512 and 2 * 98 = 196.
    """
    return {law.name: law.peak_pages(length, chunk) * (2 if law.is_local else 1) for law in horizons(plan)}


def pages_for(plan: FoldPlan, config: RuntimeConfig, max_context_length: int) -> dict[str, int]:
    """Pages of each group's pool; the budget buys the same number of full sequences in each.

    Raises:
        CapacityError: the budget does not hold one step's chunk.
    """
    chunk = min(config.max_num_batched_tokens, max_context_length)
    full = pages_of_sequence(plan, max_context_length, chunk)
    sequence_bytes = sum(full[group.name] * group.page_bytes(plan.page_size) for group in plan.groups)
    budget = config.kv_cache_bytes or min(config.max_num_seqs * sequence_bytes, DEFAULT_KV_CACHE_BYTES)
    pages = {name: int(count * budget / sequence_bytes) for name, count in full.items()}
    for law in horizons(plan):
        least = law.peak_pages(chunk, chunk)
        if pages[law.name] < least:
            raise CapacityError(
                f"kv_cache_bytes is {budget}: group {law.name} gets {pages[law.name]} pages, a step of "
                f"{chunk} tokens needs {least}; raise kv_cache_bytes or lower max_num_batched_tokens"
            )
    return pages

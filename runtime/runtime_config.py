"""RuntimeConfig: the few choices of a running LLM, and the page counts that follow from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvfold.plugins.contract.errors import CapacityError, RequestError
from kvfold.runtime.checks import check_integer
from kvfold.runtime.memory.horizon import horizons

if TYPE_CHECKING:
    from kvfold.plugins.contract.fold_plan import FoldPlan

DEFAULT_KV_CACHE_BYTES = 1 << 30


@dataclass(frozen=True)
class RuntimeConfig:
    """How an LLM runs.

    Attributes:
        kv_cache_bytes: bytes of all page pools; None takes what `max_num_seqs` sequences of the
            full context need, but at most 1 GiB.
        max_num_batched_tokens: tokens a step computes at most; longer prompts go in chunks.
        max_num_seqs: requests that run at once; more wait.
        threads: of the engine; 0 takes one for each physical core.
    """

    kv_cache_bytes: int | None = None
    max_num_batched_tokens: int = 512
    max_num_seqs: int = 8
    threads: int = 0

    def __post_init__(self) -> None:
        """Refuse values out of range; raises RequestError."""
        if self.kv_cache_bytes is not None:
            check_integer("kv_cache_bytes", self.kv_cache_bytes, 1)
        check_integer("max_num_batched_tokens", self.max_num_batched_tokens, 1)
        check_integer("max_num_seqs", self.max_num_seqs, 1)
        check_integer("threads", self.threads, 0)
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise RequestError(
                f"max_num_batched_tokens is {self.max_num_batched_tokens}, below max_num_seqs "
                f"{self.max_num_seqs}: not every running request gets a token a step; raise it"
            )


def pages_for(plan: FoldPlan, config: RuntimeConfig, max_context_length: int) -> dict[str, int]:
    """Pages of each horizon group's pool.

    Pages are counted for whole sequences of the full context: a global group holds all of one; a
    local group its running window, a step's chunk, and as much again for a tail kept in the tree.
    The budget buys the same number of sequences in each group.
    Example: 8192 tokens, pages of 16, window 1024, 4 sinks, chunks of 512: 512 and 2 * 98 = 196.

    Raises:
        CapacityError: the budget does not hold one step's chunk.
    """
    chunk = min(config.max_num_batched_tokens, max_context_length)
    least, full, page_bytes = {}, {}, {}
    for horizon, group in zip(horizons(plan), plan.groups, strict=True):
        least[group.name] = horizon.peak_pages(chunk, chunk)
        full[group.name] = horizon.peak_pages(max_context_length, chunk) * (2 if horizon.is_local else 1)
        page_bytes[group.name] = plan.page_size * group.bytes_per_token
    sequence_bytes = sum(full[name] * page_bytes[name] for name in full)
    wanted = config.max_num_seqs * sequence_bytes
    budget = config.kv_cache_bytes or min(wanted, DEFAULT_KV_CACHE_BYTES)
    pages = {name: int(full[name] * budget / sequence_bytes) for name in full}
    short = [name for name in pages if pages[name] < least[name]]
    if short:
        raise CapacityError(
            f"kv_cache_bytes is {budget}: group {short[0]} gets {pages[short[0]]} pages, a step of {chunk} "
            f"tokens needs {least[short[0]]}; raise kv_cache_bytes or lower max_num_batched_tokens"
        )
    return pages

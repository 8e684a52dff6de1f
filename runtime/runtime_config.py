"""RuntimeConfig: the few choices of a running LLM."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kvfold.plugins.contract.errors import RequestError
from kvfold.runtime.checks import check_integer, check_number


@dataclass(frozen=True)
class RuntimeConfig:
    """How an LLM runs.

    Attributes:
        kv_cache_bytes: bytes of all page pools; None takes what `max_num_seqs` sequences of the
            full context need, but at most 1 GiB.
        max_num_batched_tokens: tokens a step computes at most; longer prompts go in chunks.
        max_num_seqs: requests that run at once; more wait.
        threads: of the engine; 0 takes one for each physical core.
        inter_token_target: seconds between two tokens of a running reply that the prompts of others, cut
            into chunks, should not exceed; None lets prompts go as fast as they can.
        kv_tier: a directory of this user where pages of conversations outlive the process and the pools;
            None keeps none.
        kv_tier_bytes: bytes of files in it at most.
        kv_host_bytes: bytes of host memory for pages that the pools gave up, before they are read from a
            directory or computed; for engines whose pools are a GPU's. 0 keeps none.
    """

    kv_cache_bytes: int | None = None
    max_num_batched_tokens: int = 512
    max_num_seqs: int = 8
    threads: int = 0
    inter_token_target: float | None = None
    kv_tier: Path | None = None
    kv_tier_bytes: int = 16 << 30
    kv_host_bytes: int = 0

    def __post_init__(self) -> None:
        """Refuse values out of range; raises RequestError."""
        if self.kv_cache_bytes is not None:
            check_integer("kv_cache_bytes", self.kv_cache_bytes, 1)
        check_integer("max_num_batched_tokens", self.max_num_batched_tokens, 1)
        check_integer("max_num_seqs", self.max_num_seqs, 1)
        check_integer("threads", self.threads, 0)
        check_integer("kv_tier_bytes", self.kv_tier_bytes, 1)
        check_integer("kv_host_bytes", self.kv_host_bytes, 0)
        if self.inter_token_target is not None:
            check_number("inter_token_target", self.inter_token_target, 0)
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise RequestError(
                f"max_num_batched_tokens is {self.max_num_batched_tokens}, below max_num_seqs "
                f"{self.max_num_seqs}: not every running request gets a token a step; raise it"
            )

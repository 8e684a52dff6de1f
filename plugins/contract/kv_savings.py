"""KV bytes before and after folding, at the context lengths that every report of kvfold states."""

from __future__ import annotations

from dataclasses import dataclass

from kvfold.plugins.contract.attention_shape import AttentionShape
from kvfold.plugins.contract.fold_plan import FoldPlan

CONTEXT_LENGTHS = (1024, 2048, 8192)


@dataclass(frozen=True)
class KvBytes:
    """Resident KV bytes of one sequence.

    Attributes:
        context_length: tokens of the sequence; 1 stands for what one new token writes.
        original: bytes of the unfolded model's bf16 cache, no more of a layer than its own window.
        folded: bytes of the plan's caches, whole pages counted.
    """

    context_length: int
    original: int
    folded: int

    @property
    def reduction(self) -> float:
        """How many times smaller the folded cache is."""
        return self.original / self.folded


def kv_bytes(plan: FoldPlan, shape: AttentionShape) -> tuple[KvBytes, ...]:
    """What one new token writes (context length 1), then whole contexts.

    Several lengths, as one "x" would hide that a window saves only beyond itself.
    """
    written = sum(group.bytes_per_token for group in plan.groups)
    contexts = (KvBytes(length, shape.kv_bytes(length), plan.kv_bytes(length)) for length in CONTEXT_LENGTHS)
    return (KvBytes(1, shape.kv_bytes(1), written), *contexts)

"""What a ladder was measured to be, as `frontier.json` stores it."""

from __future__ import annotations

from kvfold.pipeline.studies.cost import FoldCost
from kvfold.plugins.contract.kv_savings import KvBytes
from kvfold.plugins.contract.record import Record

# Tokens of a sequence whose KV bytes the picture shows and the frontier is drawn by.
SHOWN_CONTEXT = 8192


class Rung(Record):
    """One recipe's plan: what it keeps and what that costs.

    Attributes:
        recipe: its name.
        kv_bytes: resident KV bytes of one sequence, as `kvfold inspect` states them.
        cost: of the float fold, healed where the recipe says so.
    """

    recipe: str
    kv_bytes: tuple[KvBytes, ...]
    cost: FoldCost

    def kv(self, context_length: int) -> KvBytes:
        """KV bytes at one of the stated context lengths."""
        return next(row for row in self.kv_bytes if row.context_length == context_length)

    @property
    def size(self) -> int:
        """Bytes at `SHOWN_CONTEXT` tokens."""
        return self.kv(SHOWN_CONTEXT).folded


class Frontier(Record):
    """A ladder, the largest cache first.

    Attributes:
        text: where the tokens came from, as a reader is told.
        rungs: at least one.
    """

    text: str
    rungs: tuple[Rung, ...]

    @property
    def best(self) -> tuple[Rung, ...]:
        """The frontier itself: rungs that no other beats in both bytes and mean KL."""
        return tuple(rung for rung in self.rungs if not any(_beats(other, rung) for other in self.rungs))


def _beats(one: Rung, other: Rung) -> bool:
    mine, theirs = (one.size, one.cost.kl.value), (other.size, other.cost.kl.value)
    return mine != theirs and mine[0] <= theirs[0] and mine[1] <= theirs[1]

"""What a searched plan must reach, as a user says it."""

from __future__ import annotations

from dataclasses import dataclass

from kvfold.export.search.choose import smallest_bytes
from kvfold.export.search.space import ByteTarget, PlanSpace
from kvfold.plugins.contract.kv_savings import CONTEXT_LENGTHS


@dataclass(frozen=True)
class Goal:
    """At least one of the two.

    Attributes:
        targets: most resident KV bytes per token at stated lengths; all must hold.
        max_kl: most KL(unfolded || folded) in nat a token, measured before healing; the smallest such plan
            is wanted. None wants the best plan within the targets.
        share_distant_globals: whether global layers may share a bank over other layers.
    """

    targets: tuple[ByteTarget, ...]
    max_kl: float | None = None
    share_distant_globals: bool = False

    @property
    def lengths(self) -> tuple[int, ...]:
        """Lengths whose bytes count, ascending; without targets the longest that kvfold's reports state."""
        return tuple(target.length for target in self.targets) or CONTEXT_LENGTHS[-1:]

    def fits(self, space: PlanSpace, globals_: frozenset[int]) -> bool:
        """Whether some plan with these globals meets every target."""
        if not self.targets:
            return True
        held = zip(self.targets, smallest_bytes(space, globals_), strict=True)
        return all(target.holds(least) for target, least in held)


def make_goal(targets: tuple[ByteTarget, ...], max_kl: float | None, share_distant_globals: bool) -> Goal:
    """A goal with its targets by length."""
    ordered = sorted(targets, key=lambda target: (target.length, target.bytes_per_token))
    return Goal(tuple(ordered), max_kl, share_distant_globals)


def parse_target(text: str) -> ByteTarget:
    """`2048@8k`, `1.5k@2048`; raises ValueError where it is neither."""
    amount, _, length = text.partition("@")
    target = ByteTarget(_number(amount), int(_number(length)))
    if target.bytes_per_token <= 0 or target.length < 1:
        raise ValueError("bytes and length are positive")
    return target


def _number(text: str) -> float:
    digits = text.strip().lower()
    return float(digits[:-1]) * 1024 if digits.endswith("k") else float(digits)

"""KV bytes before and after folding, at the context lengths that every report of kvfold states."""

from __future__ import annotations

import re
from dataclasses import dataclass

from kvfold.plugins.contract.errors import RequestError
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.plugins.contract.plan_presets import AttentionShape

CONTEXT_LENGTHS = (1024, 2048, 8192)
BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


@dataclass(frozen=True)
class KvBytes:
    """Resident KV bytes of one sequence.

    Attributes:
        context_length: tokens of the sequence; 1 stands for what one new token writes.
        original: bytes of the unfolded model's bf16 cache.
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


def format_bytes(count: float) -> str:
    """`320 B`, `22.5 KiB`, `180 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.3g} {unit}" if count < 1000 else f"{count:.0f} {unit}"


def parse_bytes(text: str) -> int:
    """`64MiB`, `1.5 GiB`, or a number of bytes.

    Raises:
        RequestError: it is none, its unit is unknown, or it is less than a byte.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text, re.ASCII)
    unit = found[2] or BYTE_UNITS[0] if found else ""
    if found is None or unit not in BYTE_UNITS:
        raise RequestError(
            f"{text!r} is no amount of bytes; write a number and one of {', '.join(BYTE_UNITS)}: e.g. 64MiB"
        )
    count = int(float(found[1]) * 1024 ** BYTE_UNITS.index(unit))
    if not count:
        raise RequestError(f"{text!r} is less than a byte; write e.g. 64MiB")
    return count

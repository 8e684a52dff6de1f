"""What the bench asks of an engine under test, and what a generation tells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

# Caches are rounded up to this many tokens: a multiple of every contender's KV page.
ROUNDING = 256


@dataclass(frozen=True)
class CacheLoad:
    """Sequences that are in the KV cache at once.

    Attributes:
        sequences: how many.
        length: tokens of each at its end.
    """

    sequences: int
    length: int

    @property
    def tokens(self) -> int:
        """Of all sequences."""
        return self.sequences * self.length


@dataclass(frozen=True)
class Limits:
    """What a contender is loaded for.

    Attributes:
        threads: compute threads.
        cache_loads: of every workload, the warm-up's too; one after the other, never together.
        target: of kvfold's engine.
    """

    threads: int
    cache_loads: tuple[CacheLoad, ...]
    target: str = "cpu"

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence, rounded up."""
        return -(-max(load.length for load in self.cache_loads) // ROUNDING) * ROUNDING

    @property
    def cache_tokens(self) -> int:
        """Tokens that the KV cache must hold at once, rounded up."""
        return -(-max(load.tokens for load in self.cache_loads) // ROUNDING) * ROUNDING

    @property
    def sequences(self) -> int:
        """Most sequences at once."""
        return max(load.sequences for load in self.cache_loads)


@dataclass(frozen=True)
class Generation:
    """Tokens of one or more sequences, and when they came.

    Attributes:
        started: clock when the prompts were handed over, seconds of `time.perf_counter`.
        tokens: new token ids of each sequence.
        arrivals: clock of each of those tokens.
    """

    started: float
    tokens: list[list[int]]
    arrivals: list[list[float]]

    @property
    def time_to_first_token(self) -> float:
        """Seconds until every sequence has its first token."""
        return max(times[0] for times in self.arrivals) - self.started

    @property
    def decode_rate(self) -> float:
        """Tokens a second over all sequences, while every one of them decodes.

        The window opens when the last sequence has its first token and closes when the first one is
        done; tokens in (open, closed] count, so neither prefill nor a half-empty batch is in it.
        """
        opened = max(times[0] for times in self.arrivals)
        closed = min(times[-1] for times in self.arrivals)
        count = sum(opened < time <= closed for times in self.arrivals for time in times)
        if count == 0:
            raise ValueError("the sequences never decoded at the same time: more new tokens are needed")
        return count / (closed - opened)


class Contender(Protocol):
    """A loaded engine."""

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> Generation:
        """Decode greedily, all prompts at once, exactly `new_tokens` each, whatever the end token says.

        Where a single prompt continues the previous call's prompt and reply, the contender may keep that
        part of its cache, as its users would.
        """
        ...


class ContenderModule(Protocol):
    """A module of `pipeline.bench.contenders`; importing it imports no engine.

    Attributes:
        TITLE: name in the table.
        WEIGHTS: how it stores the weights, for the table.
        PACKAGE: distribution whose version is reported, and by whose absence the contender is skipped.
        INSTALL: what to type when it is absent.
    """

    TITLE: str
    WEIGHTS: str
    PACKAGE: str
    INSTALL: str

    def prepare(self, source: Path, target: Path) -> None:
        """Convert the Hugging Face folder `source` into the existing folder `target`."""
        ...

    def load(self, model: Path, limits: Limits) -> Contender:
        """Load what `prepare` wrote."""
        ...

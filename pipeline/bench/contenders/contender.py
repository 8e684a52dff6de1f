"""What the bench asks of an engine under test, and what a generation tells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Limits:
    """What a contender is loaded for.

    Attributes:
        threads: compute threads.
        cache_tokens: tokens that the KV cache must hold at once, of one long sequence or of all short ones.
        sequences: most sequences at once.
    """

    threads: int
    cache_tokens: int
    sequences: int


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

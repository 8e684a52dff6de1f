"""The figures of a load: percentiles, counts by status, and goodput at a service level."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from kvfold.pipeline.bench.serving.client.outcome import Load, Outcome

KEPT_TROUBLES = 8  # the most frequent ones

Key = TypeVar("Key", str, int)


@dataclass(frozen=True)
class Percentiles:
    """Of seconds, each between the two nearest samples."""

    count: int
    p50: float
    p90: float
    p99: float
    most: float

    @classmethod
    def of(cls, seconds: Iterable[float]) -> Percentiles | None:
        """None of no samples."""
        values = np.fromiter(seconds, float)
        if not len(values):
            return None
        p50, p90, p99 = (float(value) for value in np.percentile(values, (50, 90, 99)))
        return cls(len(values), p50, p90, p99, float(values.max()))


@dataclass(frozen=True)
class ServiceLevel:
    """What a reply must keep to be good.

    Attributes:
        first_token: seconds until its first text, at most.
        token_time: seconds a token after the first, its mean, at most.
    """

    first_token: float
    token_time: float

    def is_met(self, outcome: Outcome) -> bool:
        """Whether a reply is whole and came in time."""
        first, each = outcome.first_token, outcome.token_time
        return (
            outcome.ending == "complete"
            and first is not None
            and first <= self.first_token
            and (each is None or each <= self.token_time)
        )


@dataclass(frozen=True)
class LoadSummary:
    """A load in figures.

    Attributes:
        seconds: from the start to the last end.
        endings: requests by how they ended.
        statuses: requests by HTTP status; 0 where no answer came.
        troubles: the most frequent words of refusals and breaks, and how often.
        prompt_tokens: of whole replies, as are the next two.
        cached_tokens: of the prompts, those that were not computed again.
        completion_tokens: of the replies.
        requests_per_second: whole replies.
        tokens_per_second: of whole replies.
        goodput: whole replies a second that met the service level; None where none was asked for.
        first_token: seconds until the first text.
        between_pieces: seconds between two pieces of text, of all replies.
        token_time: seconds a token after the first, one mean for each reply.
        whole: seconds from due to end.
    """

    seconds: float
    endings: Mapping[str, int]
    statuses: Mapping[int, int]
    troubles: Mapping[str, int]
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    requests_per_second: float
    tokens_per_second: float
    goodput: float | None
    first_token: Percentiles | None
    between_pieces: Percentiles | None
    token_time: Percentiles | None
    whole: Percentiles | None


def summarise(load: Load, level: ServiceLevel | None = None) -> LoadSummary:
    """The figures of a load; latencies are those of whole replies."""
    whole = load.of("complete")
    troubles = Counter(outcome.trouble for outcome in load.outcomes if outcome.trouble)
    return LoadSummary(
        seconds=load.seconds,
        endings=_counts(str(outcome.ending) for outcome in load.outcomes),
        statuses=_counts(outcome.status for outcome in load.outcomes),
        troubles=dict(troubles.most_common(KEPT_TROUBLES)),
        prompt_tokens=sum(outcome.prompt_tokens for outcome in whole),
        cached_tokens=sum(outcome.cached_tokens for outcome in whole),
        completion_tokens=load.completion_tokens,
        requests_per_second=load.requests_per_second,
        tokens_per_second=load.tokens_per_second,
        goodput=None if level is None else sum(map(level.is_met, whole)) / load.seconds,
        first_token=Percentiles.of(o.first_token for o in whole if o.first_token is not None),
        between_pieces=Percentiles.of(gap for outcome in whole for gap in outcome.gaps),
        token_time=Percentiles.of(o.token_time for o in whole if o.token_time is not None),
        whole=Percentiles.of(outcome.seconds for outcome in whole),
    )


def _counts(values: Iterable[Key]) -> Mapping[Key, int]:
    return dict(sorted(Counter(values).items()))

"""What a validation measured, as it is stored in the bundle, and the recipe's verdict on it."""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel, ConfigDict

from pipeline.recipe import Thresholds

ORIGINAL, FOLDED, ENGINE = "original", "folded", "engine"
MEASUREMENTS = "report/measurements.json"
# Five bins per decade from 1e-8 to 10 nat, and an open one at either end.
KL_BIN_EDGES = np.logspace(-8, 1, 46)


class SubjectResult(BaseModel):
    """One subject on its own.

    Attributes:
        perplexity: exp of the mean negative log-likelihood per token.
        tokens_per_second: over all logits of the text; not a benchmark, it shares the machine.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    perplexity: float
    tokens_per_second: float


class Comparison(BaseModel):
    """A candidate against a reference, KL(reference || candidate) in nat per token.

    Attributes:
        kl_histogram: positions per bin of `KL_BIN_EDGES`, the first bin open below, the last above.
        top1_agreement: share of positions with the same likeliest token, 0..1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    reference: str
    candidate: str
    kl_mean: float
    kl_median: float
    kl_p99: float
    kl_max: float
    kl_histogram: tuple[int, ...]
    top1_agreement: float
    max_logit_difference: float


class Measurements(BaseModel):
    """Everything that `kvfold validate` measured.

    Attributes:
        text: where the tokens came from.
        tokens: positions compared.
        sequence_length: tokens per sequence.
        reused_tokens: positions of the engine's later turns that were served from its cache.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str
    tokens: int
    sequence_length: int
    reused_tokens: int
    subjects: dict[str, SubjectResult]
    comparisons: tuple[Comparison, ...]

    def comparison(self, reference: str, candidate: str) -> Comparison:
        """The comparison of a pair."""
        return next(c for c in self.comparisons if (c.reference, c.candidate) == (reference, candidate))

    def perplexity_ratio(self, subject: str) -> float:
        """A subject's perplexity over the original's."""
        return self.subjects[subject].perplexity / self.subjects[ORIGINAL].perplexity


class Verdict(BaseModel):
    """One threshold of the recipe: what was measured, what is demanded, whether it is met."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    threshold: str
    meaning: str
    measured: float
    limit: float
    passed: bool


def judge(measurements: Measurements, thresholds: Thresholds) -> list[Verdict]:
    """A verdict for each threshold that the recipe sets."""
    to_original = measurements.comparison(ORIGINAL, ENGINE)
    to_folded = measurements.comparison(FOLDED, ENGINE)
    measured = {
        "max_perplexity_ratio": (measurements.perplexity_ratio(ENGINE), "perplexity, engine / original"),
        "max_kl": (to_original.kl_mean, "mean KL(original || engine), nat"),
        "max_engine_kl": (to_folded.kl_mean, "mean KL(folded || engine), nat"),
        "min_top1_agreement": (to_original.top1_agreement, "top-1 agreement, engine with original"),
        "max_logit_difference": (to_folded.max_logit_difference, "largest |folded - engine| of a logit"),
    }
    verdicts = []
    for name, limit in thresholds.model_dump().items():
        if limit is not None:
            value, meaning = measured[name]
            passed = value >= limit if name.startswith("min_") else value <= limit
            verdicts.append(
                Verdict(threshold=name, meaning=meaning, measured=value, limit=limit, passed=passed)
            )
    return verdicts

"""What every backend of sampling is held to: random cases, and what the reference says of a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import strategies as st

from kvfold.plugins.cpu.sampling_calls import Results
from kvfold.plugins.sampling import reference
from kvfold.plugins.sampling.inputs import Case
from kvfold.plugins.sampling.schema import SamplingRow, Status

# Sizes around the kernels' blocks of 256, their 16 peaks each, and words of a mask.
CASES = st.builds(
    Case,
    vocab=st.sampled_from([1, 7, 33, 255, 256, 257, 1000, 4099, 9000]),
    rows=st.integers(1, 3),
    spread=st.sampled_from([0.0, 0.3, 3.0, 30.0]),
    levels=st.sampled_from([0, 0, 2]),
    allowed=st.sampled_from([None, None, 0.0, 0.001, 0.5]),
    biased=st.sampled_from([0, 0, 20]),
    seen=st.sampled_from([0, 0, 300]),
    banned=st.sampled_from([0, 0, 3]),
    temperature=st.sampled_from([0.0, 0.001, 0.7, 1.0, 100.0]),
    top_k=st.sampled_from([0, 0, 1, 40, 300, 5000]),
    top_p=st.sampled_from([1.0, 1.0, 1e-9, 0.3, 0.95, 0.999999]),
    min_p=st.sampled_from([0.0, 0.0, 0.01, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.8]),
    frequency_penalty=st.sampled_from([0.0, 1.5, -2.0]),
    presence_penalty=st.sampled_from([0.0, 0.7, -2.0]),
    likely=st.sampled_from([None, 0, 1, 5, 100]),
    seed=st.integers(0, 2**32 - 1),
)


def may_fall_on(token: int, logits: np.ndarray, row: SamplingRow, share: float) -> bool:
    """Whether the reference gives the token to a draw, top_p and min_p within rounding of the row's own."""
    edited = reference.edit(logits, row)
    for off in (0.0, -share, share):
        top_p = min(1.0, max(row.top_p + off, 1e-12)) if row.top_p < 1 else 1.0
        for rounding in (0.0, -share, share):
            near = replace(row, top_p=top_p, min_p=min(1.0, row.min_p * (1 + rounding)))
            ids, weights = reference.candidates(edited, near)
            ends = weights.cumsum(dtype=np.float64) / weights.sum(dtype=np.float64)
            for place in np.flatnonzero(ids == token).tolist():
                start = ends[place - 1] if place else 0.0
                if weights[place] > 0 and start - share <= row.draw <= ends[place] + share:
                    return True
    return False


def check_row(
    results: Results, at: int, logits: np.ndarray, row: SamplingRow, allowed: Mapping[str, float]
) -> None:
    """One row of the results is what the reference says, within the op's tolerances."""
    expected = reference.sample(logits, row)
    assert results.status[at] == expected.status
    if expected.status != Status.SAMPLED:
        return
    token = int(results.tokens[at])
    assert (
        token == expected.token if row.temperature == 0 else may_fall_on(token, logits, row, allowed["share"])
    )
    if row.likely is None:
        return
    told = reference.score(logits, token, row.likely)
    count = len(told.likely)
    assert results.logprobs[at] == pytest.approx(told.logprob, abs=allowed["logprob"], rel=0)
    assert results.likely_ids[at, :count].tolist() == [token for token, _ in told.likely]
    values = [value for _, value in told.likely]
    assert results.likely_logprobs[at, :count] == pytest.approx(values, abs=allowed["logprob"], rel=0)


CROWDS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "all equal": lambda noise: np.zeros_like(noise),
    "all equal but one": lambda noise: np.where(np.arange(noise.size) == 999, 1, 0),
    "two values": lambda noise: noise > 0,
    "a hundred values below a likely one": lambda noise: np.where(
        np.arange(noise.size) == 999, 3, np.rint(noise * 20) * 1e-4
    ),
    "close together below a likely one": lambda noise: np.where(
        np.arange(noise.size) == 999, 3, noise * 1e-3
    ),
    "denormal beside equal ones": lambda noise: np.where(noise > 0, 0, noise * 1e-39),
    "half of them far away": lambda noise: np.where(noise > 0, noise, -1e38),
}


def crowd_rows(crowd: str, temperature: float, vocab: int) -> tuple[np.ndarray, tuple[SamplingRow, ...]]:
    """Logits float32 [vocab] of CROWDS, and rows that must tell equal and nearly equal ones apart."""
    noise = np.random.default_rng(0).standard_normal(vocab)
    draws = (0.0, 1e-6, 0.31, 0.77, 0.999, np.nextafter(1, 0))
    rows = tuple(
        SamplingRow(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p, draw=draw, likely=7)
        for top_p, top_k, min_p in ((0.3, 0, 0), (0.95, 0, 0), (0.9, 0, 0.5), (1, 40, 0), (0.9, 3500, 0))
        for draw in draws
    )
    return CROWDS[crowd](noise).astype(np.float32), rows

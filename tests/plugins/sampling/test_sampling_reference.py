"""The reference of sampling against plain definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvfold.plugins.sampling.reference import (
    DRAW_BLOCK,
    candidates,
    draw,
    edit,
    largest,
    nucleus,
    sample,
    score,
)
from kvfold.plugins.sampling.schema import SamplingRow, Status

LOGITS = np.random.default_rng(0).normal(0, 2, 50).astype(np.float32)


def softmax(logits: np.ndarray) -> np.ndarray:
    weights: np.ndarray = np.exp(logits.astype(np.float64) - logits.max())
    weights /= weights.sum()
    return weights


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def test_greedy_takes_the_likeliest() -> None:
    assert sample(LOGITS, SamplingRow()).token == int(LOGITS.argmax())
    assert sample(LOGITS, SamplingRow(temperature=1, top_k=1, draw=0.99)).token == int(LOGITS.argmax())


@given(
    temperature=st.floats(0.1, 3), top_k=st.integers(0, 60), top_p=st.floats(0.01, 1), min_p=st.floats(0, 1)
)
def test_filters_keep_what_their_definitions_keep(
    temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    row = SamplingRow(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    order = np.argsort(-LOGITS.astype(np.float64), kind="stable")
    kept = order[: top_k or None]
    probabilities = softmax(LOGITS[kept] / temperature)
    # Weights are float32: a mass or ratio within their rounding of its limit may fall on either side.
    rounding = 1e-6
    mass = probabilities.cumsum()
    least, most = (
        len(kept) if top_p == 1 else min(len(kept), 1 + int((mass < limit).sum()))
        for limit in (top_p - rounding, top_p + rounding)
    )
    likely = probabilities / probabilities[0]
    least = max(1, min(least, int((likely >= min_p * (1 + rounding)).sum())))
    most = min(most, int((likely >= min_p * (1 - rounding)).sum()))
    kept, weights = candidates(LOGITS, row)
    assert least <= len(kept) <= most
    assert set(kept.tolist()) == set(order[: len(kept)].tolist())
    assert np.allclose(weights / weights.sum(), softmax(LOGITS[kept] / temperature), atol=1e-6)


def test_mask_bias_penalties_and_bans_by_hand() -> None:
    """Token 0 is masked, 1 biased, 2 and 3 seen in the prompt alone, 4 three times in the reply, 5 banned."""
    logits = np.array([9.0, 1.0, 2.0, -2.0, 4.0, 3.0, 0.5], np.float32)
    row = SamplingRow(
        repetition_penalty=2.0,
        frequency_penalty=0.5,
        presence_penalty=0.25,
        mask=np.array([0b1111110], np.uint32),
        bias_ids=ids(1),
        bias_values=np.array([1.5], np.float32),
        seen_ids=ids(2, 3, 4),
        seen_counts=ids(0, 0, 3),
        banned_ids=ids(5),
    )
    assert edit(logits, row).tolist() == [-np.inf, 2.5, 1.0, -4.0, 4 / 2 - 3 * 0.5 - 0.25, -np.inf, 0.5]
    assert logits[0] == 9 and sample(logits, row).token == 1


def test_a_bias_comes_before_the_penalties() -> None:
    biased = SamplingRow(
        repetition_penalty=2.0,
        bias_ids=ids(0),
        bias_values=np.array([3.0], np.float32),
        seen_ids=ids(0),
        seen_counts=ids(1),
    )
    assert edit(np.array([-1.0], np.float32), biased).tolist() == [(-1 + 3) / 2]


def test_frequencies_follow_the_distribution() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    rows = [SamplingRow(temperature=1.0, draw=share) for share in np.random.default_rng(1).random(20_000)]
    counts = np.bincount([sample(logits, row).token for row in rows], minlength=3) / 20_000
    assert np.abs(counts - [0.5, 0.3, 0.2]).max() < 0.015


def test_log_probabilities_are_those_of_the_model() -> None:
    result = score(LOGITS, 7, 3)
    expected = np.log(softmax(LOGITS))
    assert result.logprob == pytest.approx(expected[7])
    assert [token for token, _ in result.likely] == np.argsort(-LOGITS)[:3].tolist()
    assert [value for _, value in result.likely] == pytest.approx(np.sort(expected)[::-1][:3].tolist())
    assert score(LOGITS, 7, 0).likely == ()
    assert len(score(LOGITS, 7, 99).likely) == 50
    warped = SamplingRow(temperature=0.5, likely=1, banned_ids=ids(0), mask=np.array([254, 0], np.uint32))
    told = sample(LOGITS, warped)
    assert told.logprob == pytest.approx(expected[told.token])
    assert told.likely[0][0] == int(LOGITS.argmax())


def test_of_equal_logits_the_first_are_the_largest() -> None:
    logits = np.array([1, 3, 3, 0, 3, 2], np.float32)
    assert [largest(logits, count).tolist() for count in (1, 2, 4, 9)] == [
        [1],
        [1, 2],
        [1, 2, 4, 5],
        [0, 1, 2, 3, 4, 5],
    ]
    assert nucleus(logits, np.exp(logits), 0.9).tolist() == [1, 2, 4, 5]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_broken_logits_are_no_token(bad: float) -> None:
    logits = LOGITS.copy()
    logits[4] = bad
    assert sample(logits, SamplingRow()).status == Status.NOT_FINITE
    assert score(logits, 7, 0).status == Status.NOT_FINITE


def test_where_nothing_is_allowed_there_is_no_token() -> None:
    nothing = SamplingRow(mask=np.zeros(2, np.uint32))
    assert sample(LOGITS, nothing).status == Status.NOTHING_ALLOWED
    only_seven = np.array([1 << 7, 0], np.uint32)
    assert sample(LOGITS, SamplingRow(mask=only_seven)).token == 7
    assert sample(LOGITS, SamplingRow(mask=only_seven, banned_ids=ids(7))).status == Status.NOTHING_ALLOWED


@given(
    count=st.integers(1, 3 * DRAW_BLOCK),
    zeros=st.floats(0, 0.99),
    spread=st.floats(0, 30),
    seed=st.integers(0, 2**32 - 1),
    share=st.floats(0, 1, exclude_max=True),
)
def test_a_draw_is_where_the_cumulative_weights_pass_it(
    count: int, zeros: float, spread: float, seed: int, share: float
) -> None:
    generator = np.random.default_rng(seed)
    exponents = generator.normal(0, spread, count)
    weights = np.exp(exponents - exponents.max()).astype(np.float32)  # at most 1, as the sampler makes them
    weights[generator.random(count) < zeros] = 0
    weights[generator.integers(count)] = 1
    cumulative = weights.cumsum(dtype=np.float64)
    index, wanted, rounding = draw(weights, share), share * cumulative[-1], 1e-12 * cumulative[-1]
    assert weights[index] > 0
    assert cumulative[index] - weights[index] <= wanted + rounding
    assert wanted <= cumulative[index] + rounding

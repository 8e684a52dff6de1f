"""Sampling against plain definitions, and the parameters that are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvfold.plugins.contract.errors import KvfoldError, RequestError
from kvfold.runtime.sampling.logprobs import token_logprob
from kvfold.runtime.sampling.params import SamplingParams
from kvfold.runtime.sampling.sampler import DRAW_BLOCK, Sampler, candidates, draw, largest, penalize

LOGITS = np.random.default_rng(0).normal(0, 2, 50).astype(np.float32)
NOTHING = np.empty(0, np.int64)


def softmax(logits: np.ndarray) -> np.ndarray:
    weights: np.ndarray = np.exp(logits.astype(np.float64) - logits.max())
    weights /= weights.sum()
    return weights


def test_greedy_takes_the_likeliest() -> None:
    assert Sampler(SamplingParams()).sample(LOGITS, NOTHING) == int(LOGITS.argmax())
    assert Sampler(SamplingParams(temperature=1, top_k=1)).sample(LOGITS, NOTHING) == int(LOGITS.argmax())


@given(
    temperature=st.floats(0.1, 3), top_k=st.integers(0, 60), top_p=st.floats(0.01, 1), min_p=st.floats(0, 1)
)
def test_filters_keep_what_their_definitions_keep(
    temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
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
    ids, weights = candidates(LOGITS, params)
    assert least <= len(ids) <= most
    assert set(ids.tolist()) == set(order[: len(ids)].tolist())
    assert np.allclose(weights / weights.sum(), softmax(LOGITS[ids] / temperature), atol=1e-6)


def test_frequencies_follow_the_distribution() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    sampler = Sampler(SamplingParams(temperature=1.0, seed=1))
    counts = np.bincount([sampler.sample(logits, NOTHING) for _ in range(20_000)], minlength=3) / 20_000
    assert np.abs(counts - [0.5, 0.3, 0.2]).max() < 0.015


def test_a_seed_repeats_and_another_differs() -> None:
    def draw(seed: int) -> list[int]:
        sampler = Sampler(SamplingParams(temperature=1.0, seed=seed))
        return [sampler.sample(LOGITS, NOTHING) for _ in range(30)]

    assert draw(3) == draw(3) != draw(4)


def test_repetition_penalty_makes_seen_tokens_less_likely() -> None:
    logits = np.array([2.0, -2.0, 1.5], np.float32)
    assert penalize(logits, np.array([0, 0, 1]), 2.0).tolist() == [1.0, -4.0, 1.5]
    assert logits.tolist() == [2.0, -2.0, 1.5]
    assert Sampler(SamplingParams(repetition_penalty=2.0)).sample(logits, np.array([0])) == 2


def test_logprobs_are_those_of_the_model() -> None:
    result = token_logprob(LOGITS, 7, 3)
    expected = np.log(softmax(LOGITS))
    assert result.logprob == pytest.approx(expected[7])
    assert [token for token, _ in result.top] == np.argsort(-LOGITS)[:3].tolist()
    assert [value for _, value in result.top] == pytest.approx(np.sort(expected)[::-1][:3].tolist())
    assert token_logprob(LOGITS, 7, 0).top == ()
    assert len(token_logprob(LOGITS, 7, 99).top) == 50


def test_of_equal_logits_the_first_are_the_largest() -> None:
    logits = np.array([1, 3, 3, 0, 3, 2], np.float32)
    assert [largest(logits, count).tolist() for count in (1, 2, 4, 9)] == [
        [1],
        [1, 2],
        [1, 2, 4, 5],
        [0, 1, 2, 3, 4, 5],
    ]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_broken_logits_are_no_token(bad: float) -> None:
    logits = LOGITS.copy()
    logits[4] = bad
    with pytest.raises(KvfoldError, match="as a logit"):
        Sampler(SamplingParams()).sample(logits, NOTHING)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", 1e-9),
        ("temperature", 101),
        ("temperature", "hot"),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_p", 0),
        ("top_p", 1.1),
        ("min_p", -0.5),
        ("repetition_penalty", 0),
        ("seed", -1),
        ("max_tokens", 0),
        ("max_tokens", True),
        ("stop", "END"),
        ("stop", ("",)),
        ("logprobs", -1),
    ],
)
def test_a_bad_parameter_is_named_with_its_value(name: str, value: Any) -> None:
    with pytest.raises(RequestError, match=name):
        SamplingParams(**{name: value})


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

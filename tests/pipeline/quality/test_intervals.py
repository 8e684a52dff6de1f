"""Intervals: they cover a known value about as often as they say, on few windows and many."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

from kvfold.pipeline.quality.intervals import (
    Estimate,
    bootstrap_exp_mean,
    bootstrap_mean,
    bootstrap_quantile,
    share,
    student_quantile,
)

ROUNDS = 400


def covers(estimate: Estimate, truth: float) -> bool:
    assert estimate.low is not None
    assert estimate.high is not None
    assert estimate.low <= estimate.value <= estimate.high
    return estimate.low <= truth <= estimate.high


@pytest.mark.parametrize("windows", [3, 4, 8, 40])
def test_the_mean_of_windows_is_covered_at_the_stated_rate(windows: int) -> None:
    """0.95 is stated; 400 rounds of a right interval give 0.92 to 0.98, 3 standard errors wide."""
    generator = np.random.default_rng(windows)
    found = [covers(bootstrap_mean(row), 2.0) for row in generator.normal(2.0, 0.7, (ROUNDS, windows))]
    assert 0.915 <= np.mean(found) <= 0.985


def test_windows_are_resampled_whole() -> None:
    """Tokens of a window share its level: treating them as independent would cover a third of the time."""
    generator = np.random.default_rng(1)
    tokens = generator.normal(0, 1, (ROUNDS, 20, 1)) + generator.normal(0, 1, (ROUNDS, 20, 50))
    found = [covers(bootstrap_mean(windows.mean(axis=1)), 0.0) for windows in tokens]
    assert 0.915 <= np.mean(found) <= 0.985


def test_the_median_of_tokens_is_covered() -> None:
    generator = np.random.default_rng(2)
    tokens = np.exp(generator.normal(0, 0.5, (100, 20, 1)) + generator.normal(0, 1, (100, 20, 50)))
    found = [covers(bootstrap_quantile(windows, 0.5), 1.0) for windows in tokens]
    assert np.mean(found) >= 0.88  # 3 standard errors of 100 rounds below 0.95


def test_quantiles_are_those_of_all_tokens() -> None:
    values = np.random.default_rng(3).permutation(1000).reshape(10, 100).astype(float)
    assert bootstrap_quantile(values, 0.5).value == 499
    assert bootstrap_quantile(values, 0.99).value == 989


@pytest.mark.parametrize("trials", [5, 10, 40])
def test_shares_are_covered(trials: int) -> None:
    """Exact coverage by the binomial distribution; Wilson's is the stated one on average over all chances."""
    chances = np.linspace(0.01, 0.99, 99)
    coverage = np.zeros_like(chances)
    for correct in range(trials + 1):
        estimate = share(correct, trials)
        assert estimate.low is not None
        assert estimate.high is not None
        mass = comb(trials, correct) * chances**correct * (1 - chances) ** (trials - correct)
        coverage += mass * ((estimate.low <= chances) & (chances <= estimate.high))
    assert 0.945 <= coverage.mean() <= 0.965


def test_shares_without_a_miss_still_have_a_width() -> None:
    """From Wilson's formula: of n of n the low end is 1 / (1 + z^2 / n)."""
    all_right, none_right = share(5, 5), share(0, 5)
    assert (all_right.value, all_right.high, none_right.value, none_right.low) == (1, 1, 0, 0)
    assert all_right.low == pytest.approx(1 / (1 + 1.96**2 / 5), abs=1e-4)
    assert none_right.high == pytest.approx(1 - 1 / (1 + 1.96**2 / 5), abs=1e-4)


def test_ratios_of_perplexities_are_positive() -> None:
    estimate = bootstrap_exp_mean(np.log([1.0, 1.0, 4.0, 4.0]))
    assert estimate.value == pytest.approx(2.0)
    assert estimate.low is not None
    assert estimate.low > 0


def test_two_windows_have_no_interval() -> None:
    assert bootstrap_mean(np.array([1.0, 5.0])) == Estimate(value=3.0)


def test_student_s_quantiles() -> None:
    """Tables: 2.5 % in each tail."""
    assert student_quantile(0.975, 3) == pytest.approx(3.182, rel=0.01)
    assert student_quantile(0.975, 10) == pytest.approx(2.228, rel=0.001)
    assert student_quantile(0.975, 1000) == pytest.approx(1.962, rel=0.001)

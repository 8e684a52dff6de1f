"""Distances between distributions: laws, and small ones computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvfold.pipeline.quality.logit_measures import measure_distance, negative_log_likelihood
from kvfold.pipeline.quality.subject_names import ENGINE, FOLDED, ORIGINAL
from kvfold.pipeline.quality.subjects import Subject
from kvfold.pipeline.quality.validate.measurements import Measurements, judge
from kvfold.pipeline.quality.validate.validate import compare
from kvfold.pipeline.recipe.recipe import Thresholds
from kvfold.plugins.contract.attention_shape import AttentionShape
from kvfold.plugins.contract.errors import ValidationError
from kvfold.plugins.contract.plan_presets import Preset, build_plan
from kvfold.runtime.engine.slabs import bytes_of_slabs
from kvfold.runtime.memory.budget import kv_cache_bytes, pages_of_sequence
from kvfold.runtime.runtime_config import RuntimeConfig

VOCAB = 8


def logits_of(*rows: list[float]) -> np.ndarray:
    logits: np.ndarray = np.log(np.array(rows)).astype(np.float32)
    return logits


def test_known_distributions() -> None:
    p = logits_of([0.5, 0.5], [0.25, 0.75])
    q = logits_of([0.25, 0.75], [0.25, 0.75])
    distance = measure_distance(p, q)
    expected = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    assert distance.kl == pytest.approx([expected, 0.0], abs=1e-7)
    assert distance.same_top1.tolist() == [False, True]
    assert distance.max_logit_difference == pytest.approx(np.log(2), rel=1e-6)


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 30), st.integers(1, 200))
def test_a_model_against_itself_is_exactly_zero(seed: int, spread: float, rows: int) -> None:
    logits = (np.random.default_rng(seed).standard_normal((rows, 17)) * spread).astype(np.float32)
    distance = measure_distance(logits, logits.copy())
    assert (distance.kl == 0).all()
    assert distance.same_top1.all()
    assert distance.max_logit_difference == 0


@given(st.integers(0, 2**32 - 1))
def test_kl_is_not_negative_and_ignores_a_shift(seed: int) -> None:
    rng = np.random.default_rng(seed)
    p, q = rng.standard_normal((2, 5, 11)).astype(np.float32)
    distance = measure_distance(p, q)
    assert (distance.kl >= 0).all()
    shifted = measure_distance(p, q + np.float32(4.0))
    assert shifted.kl == pytest.approx(distance.kl, abs=1e-5)


def test_huge_logits_do_not_overflow() -> None:
    logits = np.array([[1e4, 0.0], [-1e4, 0.0]], np.float32)
    assert negative_log_likelihood(logits, np.array([0, 0])) == pytest.approx([0.0])
    assert (measure_distance(logits, logits).kl == 0).all()


def test_losses_are_those_of_the_next_token() -> None:
    logits = logits_of([0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4])
    losses = negative_log_likelihood(logits, np.array([0, 2, 1]))
    assert losses == pytest.approx([-np.log(0.25), -np.log(0.8)], rel=1e-6)


class FixedSubject(Subject):
    """Logits are a function of the token: a bigram table, or that with noise."""

    def __init__(self, name: str, table: np.ndarray) -> None:
        super().__init__(name)
        self._table = table

    def compute_logits(self, token_ids: np.ndarray) -> np.ndarray:
        logits: np.ndarray = self._table[token_ids]
        return logits


def measurements(*tables: np.ndarray) -> Measurements:
    windows = np.random.default_rng(1).integers(0, VOCAB, (3, 40))
    names = (ORIGINAL, FOLDED, ENGINE)
    subjects = tuple(FixedSubject(name, table) for name, table in zip(names, tables, strict=True))
    return compare(windows, subjects, "test", lambda fraction: None)


def test_comparing_through_polygraphy() -> None:
    table = np.random.default_rng(0).standard_normal((VOCAB, VOCAB)).astype(np.float32)
    noisy = table + np.float32(0.1) * np.random.default_rng(2).standard_normal(table.shape).astype(np.float32)
    found = measurements(table, table, noisy)
    same, different = found.comparison(ORIGINAL, FOLDED), found.comparison(FOLDED, ENGINE)
    assert (same.kl_mean, same.kl_max, same.top1_agreement, same.max_logit_difference) == (0, 0, 1, 0)
    assert 0 < different.kl_median <= different.kl_p99 <= different.kl_max
    assert sum(different.kl_histogram) == found.tokens == 120
    assert found.perplexity_ratio(FOLDED) == 1
    assert found.comparison(ORIGINAL, ENGINE).kl_mean == pytest.approx(different.kl_mean)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_numbers_are_an_error(value: float) -> None:
    table = np.zeros((VOCAB, VOCAB), np.float32)
    broken = table.copy()
    broken[:, 0] = value
    with pytest.raises(ValidationError, match=f"the subject {ENGINE} are NaN or infinite"):
        measurements(table, table, broken)


def test_every_threshold_can_be_missed_and_met() -> None:
    table = np.random.default_rng(0).standard_normal((VOCAB, VOCAB)).astype(np.float32)
    found = measurements(table, table, -table)
    strict = Thresholds(
        max_perplexity_ratio=0.01, max_kl=0, max_engine_kl=0, min_top1_agreement=1, max_logit_difference=1e-9
    )
    assert [verdict.passed for verdict in judge(found, strict)] == [False] * 5
    loose = Thresholds(
        max_perplexity_ratio=99, max_kl=99, max_engine_kl=99, min_top1_agreement=0, max_logit_difference=99
    )
    assert [verdict.passed for verdict in judge(found, loose)] == [True] * 5
    assert judge(found, Thresholds(max_perplexity_ratio=None, max_engine_kl=None)) == []


def test_pools_hold_a_sequence_whatever_its_bytes() -> None:
    """2,048 tokens of this shape in float32 are 4 GiB, above the budget that an LLM takes by itself."""
    shape = AttentionShape(num_hidden_layers=64, num_attention_heads=32, num_key_value_heads=32, head_dim=128)
    plan = build_plan(Preset(preset="identity"), shape)
    assert plan.kv_bytes(2048) == 4 * 2**30
    assert pages_of_sequence(plan, 2048, 512) == {"global": 128}


def test_pools_of_a_small_plan_are_the_runtime_s_own() -> None:
    shape = AttentionShape(num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=16)
    plan = build_plan(Preset(preset="horizon", sliding_window=64, global_every=2), shape)
    config = RuntimeConfig(max_num_batched_tokens=48, max_num_seqs=1)
    slabs = {group.name: 4 for group in plan.groups}
    one = bytes_of_slabs(plan, pages_of_sequence(plan, 1000, 48), slabs)
    assert one == kv_cache_bytes(plan, slabs, config, 1000)

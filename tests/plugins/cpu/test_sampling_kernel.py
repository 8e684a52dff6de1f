"""The compiled sampling against the reference, on every instruction set this machine has."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvfold.plugins.contract.errors import KernelError
from kvfold.plugins.cpu import sampling_calls
from kvfold.plugins.cpu.sampling_calls import Batch, NativeRow, Results
from kvfold.plugins.sampling import reference, tolerances
from kvfold.plugins.sampling.inputs import Case, Inputs, make_inputs
from kvfold.plugins.sampling.schema import SamplingRow, Status
from tests.plugins.sampling_cases import CASES, CROWDS, check_row, crowd_rows

PROPERTY = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def run(inputs: Inputs) -> Results:
    """The kernels' answer to all rows together."""
    batch = Batch([NativeRow(row) for row in inputs.rows])
    batch.begin(inputs.logits)
    assert batch.finish() == np.count_nonzero(batch.results.status)
    return batch.results


@PROPERTY
@given(case=CASES)
def test_tokens_and_log_probabilities_are_the_reference_s(isa: str, case: Case) -> None:
    inputs = make_inputs(case)
    results = run(inputs)
    for at, row in enumerate(inputs.rows):
        check_row(results, at, inputs.logits[at], row, tolerances.OUTPUT)


@pytest.mark.parametrize("spread", [0.5, 2.0, 8.0])
@pytest.mark.parametrize("top_k", [0, 3500, 5000])
def test_a_large_vocabulary_is_sampled_by_the_reference_s_rules(isa: str, spread: float, top_k: int) -> None:
    """From 4,096 tokens on a sample of them says where a nucleus may end."""
    case = Case(vocab=20_011, rows=8, spread=spread, temperature=0.8, top_p=0.9, top_k=top_k, likely=3)
    inputs = make_inputs(case)
    results = run(inputs)
    for at, row in enumerate(inputs.rows):
        check_row(results, at, inputs.logits[at], row, tolerances.OUTPUT)


def test_a_nucleus_is_right_where_a_sample_of_the_row_misleads(isa: str) -> None:
    """All that is likely stands where nobody samples, then all where everybody does."""
    rng = np.random.default_rng(0)
    for sampled in (False, True):
        logits = rng.standard_normal((1, 20_480)).astype(np.float32)
        logits[0, (np.arange(20_480) % 256 < 8) == sampled] += 9
        for draw in (0.0, 0.3, 0.9, 0.999):
            row = SamplingRow(temperature=1.0, top_p=0.9, draw=draw)
            check_row(run(Inputs(logits, (row,))), 0, logits[0], row, tolerances.OUTPUT)


@pytest.mark.parametrize("crowd", CROWDS)
@pytest.mark.parametrize("temperature", [0.8, 100.0])
def test_logits_that_crowd_are_told_apart_and_equal_ones_come_in_order(
    isa: str, crowd: str, temperature: float
) -> None:
    logits, rows = crowd_rows(crowd, temperature, 20_011)
    results = run(Inputs(np.tile(logits, (len(rows), 1)), rows))
    for at, row in enumerate(rows):
        check_row(results, at, logits, row, tolerances.OUTPUT)


@PROPERTY
@given(case=CASES)
def test_a_row_alone_gives_the_bits_that_it_gives_in_a_batch(isa: str, case: Case) -> None:
    inputs = make_inputs(replace(case, rows=3))
    together = run(inputs)
    for at, row in enumerate(inputs.rows):
        alone = run(Inputs(inputs.logits[at : at + 1], (row,)))
        assert alone.status[0] == together.status[at]
        if alone.status[0] == Status.SAMPLED:
            assert alone.tokens[0] == together.tokens[at]
            assert alone.logprobs[0] == together.logprobs[at]
            np.testing.assert_array_equal(alone.likely_ids[0], together.likely_ids[at])
            np.testing.assert_array_equal(alone.likely_logprobs[0], together.likely_logprobs[at])


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 1, 8, 255, 299])
def test_a_row_that_is_not_finite_has_no_token_and_its_neighbours_have_theirs(
    isa: str, bad: float, place: int
) -> None:
    inputs = make_inputs(Case(vocab=300, rows=3, temperature=0.7, likely=2))
    good = run(inputs)
    inputs.logits[1, place] = bad
    results = run(inputs)
    assert results.status.tolist() == [Status.SAMPLED, Status.NOT_FINITE, Status.SAMPLED]
    assert results.tokens[[0, 2]].tolist() == good.tokens[[0, 2]].tolist()


def test_minus_infinity_is_a_token_that_never_comes(isa: str) -> None:
    inputs = make_inputs(Case(vocab=300, temperature=100.0, likely=300))
    inputs.logits[:, 10:] = -np.inf
    results = run(inputs)
    assert (results.status == Status.SAMPLED).all() and (results.tokens < 10).all()
    assert (results.likely_logprobs[:, 10:] == -np.inf).all()
    inputs.logits[:] = -np.inf
    assert (run(inputs).status == Status.NOT_FINITE).all()


def test_logits_stay_as_they_are(isa: str) -> None:
    inputs = make_inputs(Case(vocab=300, allowed=0.5, seen=20, presence_penalty=1.0, temperature=1.0))
    before = inputs.logits.copy()
    run(inputs)
    np.testing.assert_array_equal(inputs.logits, before)


@PROPERTY
@given(
    vocab=st.sampled_from([1, 100, 256, 5000]),
    likely=st.sampled_from([0, 1, 5, 9000]),
    seed=st.integers(0, 99),
)
def test_scores_are_the_reference_s(isa: str, vocab: int, likely: int, seed: int) -> None:
    logits = make_inputs(Case(vocab, rows=4, seed=seed)).logits
    tokens = np.random.default_rng(seed).integers(0, vocab, 4)
    results, failed = sampling_calls.score(logits, tokens, likely)
    assert failed == 0
    for at, token in enumerate(tokens.tolist()):
        told = reference.score(logits[at], token, likely)
        assert results.logprobs[at] == pytest.approx(told.logprob, abs=tolerances.OUTPUT["logprob"], rel=0)
        assert results.likely_ids[at].tolist() == [token for token, _ in told.likely]
        values = [value for _, value in told.likely]
        assert results.likely_logprobs[at] == pytest.approx(values, abs=tolerances.OUTPUT["logprob"], rel=0)


def test_a_library_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling_calls, "VERSION", sampling_calls.VERSION + 1)
    sampling_calls.load_sampling.cache_clear()
    with pytest.raises(KernelError, match="of another version of kvfold; install"):
        sampling_calls.load_sampling()

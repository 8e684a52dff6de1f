"""Sampling on a GPU against the reference, on the op's own inputs, under Triton's interpreter."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from kvfold.plugins.cpu.sampling_calls import NativeRow, Results
from kvfold.plugins.cuda.sampling_launches import (
    EDIT_BLOCK,
    FEED_BLOCK,
    feed_numbers,
    kernels_of,
    numbers_of,
    results_of,
    tables_of,
)
from kvfold.plugins.sampling import tolerances
from kvfold.plugins.sampling.inputs import Case, Inputs, make_inputs
from kvfold.plugins.sampling.schema import SamplingRow
from kvfold.runtime.engine.protocol import drawn_id
from tests.plugins.cuda.interpreter import in_interpreter
from tests.plugins.sampling_cases import CASES, CROWDS, check_row, crowd_rows


def sample_block(vocab: int) -> int:
    """Three blocks a row, or one of a short row: the interpreter's time is that of its calls."""
    return max(16, 1 << (-(-vocab // 3) - 1).bit_length())


def launch(inputs: Inputs, sources: list[int]) -> dict[str, np.ndarray]:
    """In the interpreter's process: the kernels of a batch, one after the other; their results by name."""
    rows, vocab = [NativeRow(row) for row in inputs.rows], inputs.logits.shape[1]
    tables = tables_of(rows, sources)
    width = max(0, *(row.likely for row in rows))
    results: dict[str, np.ndarray] = {
        name: np.full(shape, 77, dtype) for name, (dtype, shape) in results_of(len(rows), width).items()
    }
    edited = np.full((len(rows), vocab), np.nan, np.float32)  # nothing may be read before it is written
    arrays = {**tables, **results, "logits": inputs.logits, "edited": edited}
    values = {name: torch.from_numpy(array) for name, array in arrays.items()}
    values |= numbers_of(len(rows), vocab, width)  # type: ignore[arg-type]
    for name in kernels_of(tables):
        module = importlib.import_module(f"kvfold.plugins.cuda.kernels.{name}")
        kernel = getattr(module, name)
        grid = tuple(values[axis] for axis in module.GRID)
        block = {"edit": EDIT_BLOCK, "penalize": 16, "sample": sample_block(vocab)}[name]
        taken = {each: values[each] for each in kernel.arg_names if each != "BLOCK"}
        kernel[grid](**taken, BLOCK=block)
    return results


def run(inputs: Inputs, sources: list[int] | None = None) -> Results:
    """The kernels' answer to all rows together."""
    found = in_interpreter(launch, inputs, sources or list(range(len(inputs.rows))))
    results = Results(len(inputs.rows), found["likely_ids"].shape[1])
    for name, array in found.items():
        setattr(results, name, array)
    return results


@settings(deadline=None, max_examples=20)
@given(case=CASES)
def test_tokens_and_log_probabilities_are_the_reference_s(case: Case) -> None:
    inputs = make_inputs(case)
    results = run(inputs)
    for at, row in enumerate(inputs.rows):
        check_row(results, at, inputs.logits[at], row, tolerances.OUTPUT)


@pytest.mark.parametrize("crowd", CROWDS)
def test_logits_that_crowd_are_told_apart_and_equal_ones_come_in_order(
    crowd: str,
) -> None:
    logits, rows = crowd_rows(crowd, 0.8, 1_051)
    rows = rows[::7]
    results = run(Inputs(logits[None], rows), [0] * len(rows))
    for at, row in enumerate(rows):
        check_row(results, at, logits, row, tolerances.OUTPUT)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_has_no_token_and_the_others_have(value: float) -> None:
    inputs = make_inputs(Case(vocab=700, rows=3, temperature=0.7, seen=5, repetition_penalty=1.2))
    inputs.logits[1, 600 if value > 0 or np.isnan(value) else slice(None)] = value
    results = run(inputs)
    for at, row in enumerate(inputs.rows):
        check_row(results, at, inputs.logits[at], row, tolerances.OUTPUT)


def test_rows_are_taken_from_where_they_lie() -> None:
    inputs = make_inputs(Case(vocab=300, rows=4))
    rows = (SamplingRow(), SamplingRow(banned_ids=np.array([int(inputs.logits[0].argmax())], np.int32)))
    results = run(Inputs(inputs.logits, rows), [2, 0])
    assert results.tokens.tolist() == [int(inputs.logits[2].argmax()), int(np.argsort(inputs.logits[0])[-2])]


def feed(ids: np.ndarray, tokens: np.ndarray, count: int) -> np.ndarray:
    """In the interpreter's process: the first `count` ids are a step's."""
    module = importlib.import_module("kvfold.plugins.cuda.kernels.feed")
    numbers, fed = feed_numbers(count), torch.from_numpy(ids)
    grid = tuple(numbers[axis] for axis in module.GRID)
    module.feed[grid](fed, torch.from_numpy(tokens), numbers["ids"], BLOCK=FEED_BLOCK)
    return fed.numpy()


@pytest.mark.parametrize("count", [1, FEED_BLOCK, 2 * FEED_BLOCK + 3])
def test_ids_that_name_a_drawn_token_become_it(count: int) -> None:
    rng = np.random.default_rng(count)
    tokens = rng.integers(0, 150_000, 64).astype(np.int32)
    tokens[3] = -1  # a row without a token
    ids = rng.integers(-64, 150_000, count + 9)
    ids[::2] = -1 - rng.integers(0, 64, len(ids[::2]))
    ids[0], ids[count:] = drawn_id(3), -1
    expected = np.where(ids[:count] < 0, tokens[-1 - np.minimum(ids[:count], -1)], ids[:count])
    expected[expected < 0] = 0
    fed = in_interpreter(feed, ids, tokens, count)
    assert fed[:count].tolist() == expected.tolist() and fed[0] == 0
    assert (fed[count:] == -1).all(), "what is no id of the step stays"

"""How a step is laid out for TensorRT: its profile, its bucket, its places in the buffer, its padding."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvfold.plugins.contract import step as contract
from kvfold.plugins.contract.errors import TargetError
from kvfold.runtime.engine.cuda.buckets import DecodeBuckets
from kvfold.runtime.engine.cuda.staging import ALIGNMENT, bind_step, write_step
from kvfold.runtime.engine.cuda.step_shape import StepShape
from kvfold.runtime.engine.engine_config import StepLimits
from kvfold.runtime.engine.protocol import GroupTables, StepInputs
from kvfold.runtime.engine.tensorrt.profiles import DECODE, PREFILL, check_batch, choose_profile
from tests.runtime.engine.tensorrt.tensorrt_harness import make_facts
from tests.runtime.synthetic_engine import make_plan

PLAN = make_plan((None, 0), (32, 4))
FACTS = make_facts(PLAN)


def limits(sequences: int, width: int, narrow: int, logits: int = 300) -> StepLimits:
    widths = {"global": width, "window32_sink4": narrow}
    return StepLimits(
        max_tokens=sequences, max_sequences=sequences, max_table_width=widths, max_logits=logits
    )


def test_one_token_a_sequence_decodes_and_anything_else_prefills() -> None:
    assert choose_profile(StepShape(3, 3, 3, (2, 2)), FACTS, PLAN) == DECODE
    assert choose_profile(StepShape(1, 1, 1, (1, 1)), FACTS, PLAN) == DECODE
    assert choose_profile(StepShape(4, 3, 3, (2, 2)), FACTS, PLAN) == PREFILL
    assert choose_profile(StepShape(64, 6, 6, (32, 32)), FACTS, PLAN) == PREFILL


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (StepShape(7, 7, 1, (1, 1)), "7 sequences, this plan takes 6; lower max_num_seqs"),
        (StepShape(65, 2, 1, (1, 1)), "65 tokens, this plan takes 64; lower max_num_batched_tokens"),
        (StepShape(64, 2, 7, (1, 1)), "7 rows of logits, this plan takes 6"),
        (StepShape(2, 2, 2, (3, 33)), "33 pages in group window32_sink4, this plan takes 32"),
    ],
)
def test_a_step_beyond_the_limits_says_which(shape: StepShape, message: str) -> None:
    with pytest.raises(TargetError, match=re.escape(message)):
        choose_profile(shape, FACTS, PLAN)


def test_batch_sizes_beyond_the_plan_are_refused_before_anything_runs() -> None:
    check_batch(FACTS, max_num_batched_tokens=64, max_num_seqs=6)
    with pytest.raises(TargetError, match="65 tokens, this plan takes 64; lower max_num_batched_tokens"):
        check_batch(FACTS, max_num_batched_tokens=65, max_num_seqs=6)
    with pytest.raises(TargetError, match="7 sequences, this plan takes 6; lower max_num_seqs"):
        check_batch(FACTS, max_num_batched_tokens=64, max_num_seqs=7)


@given(st.integers(1, 256), st.integers(1, 8192), st.data())
def test_a_bucket_holds_its_step_and_is_not_much_larger(most: int, widest: int, data: st.DataObject) -> None:
    narrow = data.draw(st.integers(1, widest))
    buckets = DecodeBuckets.of(limits(most, widest, narrow, logits=most), PLAN)
    batch = data.draw(st.integers(1, most))
    shape = StepShape(
        batch, batch, batch, (data.draw(st.integers(1, widest)), data.draw(st.integers(1, narrow)))
    )
    padded = buckets.pad(shape)
    assert padded.tokens == padded.sequences == padded.rows
    assert batch <= padded.sequences <= min(most, max(2 * batch - 1, 1))
    for width, room, limit in zip(shape.table_widths, padded.table_widths, (widest, narrow), strict=True):
        assert width <= room <= limit
    assert padded.table_widths[0] <= max(16, 4 * max(shape.table_widths))
    assert buckets.pad(padded) == padded, "a bucket is its own bucket: nothing is captured twice"


def test_the_number_of_graphs_stays_small() -> None:
    small = DecodeBuckets.of(limits(8, 512, 512), PLAN)
    assert (small.batches, small.widths) == ((1, 2, 4, 8), (16, 64, 256, 512))
    large = DecodeBuckets.of(limits(256, 8192, 8192), PLAN)
    assert len(large.batches) * len(large.widths) == 54


def test_rows_of_logits_are_padded_no_further_than_the_profile() -> None:
    buckets = DecodeBuckets.of(limits(8, 16, 16, logits=3), PLAN)
    assert buckets.pad(StepShape(5, 5, 2, (1, 1))).rows == 3


@given(st.integers(1, 300), st.integers(1, 64), st.integers(1, 64), st.integers(1, 600))
def test_arrays_are_aligned_disjoint_and_those_of_the_contract(
    tokens: int, sequences: int, rows: int, width: int
) -> None:
    table = bind_step(StepShape(tokens, sequences, rows, (width, 2)), PLAN)
    caches = sum(2 for _ in PLAN.banks)
    assert [binding.name for binding in table.bindings] == contract.input_names(PLAN)[:-caches]
    end = 0
    for binding in table.bindings:
        assert binding.offset % ALIGNMENT == 0 and end <= binding.offset < end + ALIGNMENT
        end = binding.offset + binding.nbytes
    assert table.nbytes == end
    shapes = {binding.name: (binding.shape, binding.dtype.name) for binding in table.bindings}
    assert shapes[contract.INPUT_IDS] == ((tokens,), "int64")
    assert shapes[contract.CUMULATIVE_SEQUENCE_LENGTH] == ((sequences + 1,), "int32")
    assert shapes[contract.LOGITS_INDICES] == ((rows,), "int64")
    assert shapes["block_table.global"] == ((sequences, width), "int32")
    assert shapes["slot_mapping.window32_sink4"] == ((tokens,), "int32")


def test_padding_overwrites_whatever_a_larger_step_left() -> None:
    plan = make_plan((None, 0))
    step = StepInputs(
        input_ids=np.array([7, 8]),
        cumulative_sequence_length=np.array([0, 1, 2], np.int32),
        past_seqlens=np.array([5, 20], np.int32),
        logits_indices=np.array([1]),
        tables={
            "global": GroupTables(np.array([[3, -1], [4, 9]], np.int32), np.array([53, 148], np.int32)),
        },
    )
    table = bind_step(StepShape(4, 4, 4, (3,)), plan)
    arrays = {binding.name: np.full(binding.shape, 99, binding.dtype) for binding in table.bindings}
    write_step(arrays, step)
    assert {name: array.tolist() for name, array in arrays.items()} == {
        "input_ids": [7, 8, 0, 0],
        "cumulative_sequence_length": [0, 1, 2, 3, 4],
        "past_seqlens": [5, 20, 0, 0],
        "logits_indices": [1, 0, 0, 0],
        "block_table.global": [[3, -1, -1], [4, 9, -1], [-1, -1, -1], [-1, -1, -1]],
        "slot_mapping.global": [53, 148, -1, -1],
    }

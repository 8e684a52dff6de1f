"""The packed inputs of a step, as `plugins.contract.step` defines them."""

from __future__ import annotations

import numpy as np

from kvfold.runtime.memory.paged_sequence import PagedSequence
from kvfold.runtime.scheduler.step_builder import Chunk, StepBuilder


def sequence(first: int, pages: list[int]) -> PagedSequence:
    made = PagedSequence(np.arange(first, first + 100), 2, 8)
    for group, table in enumerate(made.tables):
        table[: len(pages)] = [page + 10 * group for page in pages]
    made.num_pages = len(pages)
    return made


def test_a_ragged_step_is_packed() -> None:
    builder = StepBuilder(["global", "local"], 16, max_tokens=32, max_seqs=4, max_pages=8)
    builder.build(
        [
            Chunk(sequence(0, [1, 2, 3, 4]), 60, 61, range(60, 61)),
            Chunk(sequence(0, [5] * 4), 60, 61, range(60, 61)),
        ]
    )
    decode = Chunk(sequence(100, [3, 0, 2]), 32, 33, range(32, 33))
    prefill = Chunk(sequence(500, [5, 6]), 14, 20, range(20, 20))
    last = Chunk(sequence(700, [7]), 0, 3, range(1, 3))
    step = builder.build([decode, prefill, last])
    assert step.input_ids.tolist() == [132, *range(514, 520), 700, 701, 702]
    assert step.cumulative_sequence_length.tolist() == [0, 1, 7, 10]
    assert step.past_seqlens.tolist() == [32, 14, 0]
    assert step.logits_indices.tolist() == [0, 8, 9]
    table = step.tables["global"].block_table
    assert table.tolist() == [[3, 0, 2], [5, 6, -1], [7, -1, -1]]
    assert table.flags.c_contiguous and table.dtype == np.int32
    slots = [
        2 * 16,
        5 * 16 + 14,
        5 * 16 + 15,
        *(6 * 16 + i for i in range(4)),
        *(7 * 16 + i for i in range(3)),
    ]
    assert step.tables["global"].slot_mapping.tolist() == slots
    assert step.tables["local"].slot_mapping.tolist() == [slot + 160 for slot in slots]


def test_a_single_sequence_is_passed_without_a_copy() -> None:
    builder = StepBuilder(["global", "local"], 16, max_tokens=32, max_seqs=4, max_pages=8)
    alone = sequence(0, [4, 5])
    step = builder.build([Chunk(alone, 20, 30, range(30, 30))])
    assert np.shares_memory(step.tables["global"].block_table, alone.tables[0])
    assert step.tables["global"].block_table.tolist() == [[4, 5]]
    assert step.logits_indices.tolist() == [9], "an engine is never asked for no row at all"

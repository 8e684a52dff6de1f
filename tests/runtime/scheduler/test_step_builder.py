"""The packed inputs of a step, as `plugins.contract.step` defines them."""

from __future__ import annotations

from typing import Any

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
    assert table[:, :3].tolist() == [[3, 0, 2], [5, 6, -1], [7, -1, -1]] and (table[:, 3:] == -1).all()
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


def test_rows_follow_their_sequences_from_step_to_step() -> None:
    builder = StepBuilder(["global", "local"], 16, max_tokens=32, max_seqs=4, max_pages=40)
    one, two = sequence(0, [4, 5]), sequence(100, [6, 7, 8])

    def table(*sequences: PagedSequence) -> Any:
        step = builder.build([Chunk(each, 20, 21, range(20, 21)) for each in sequences])
        table = step.tables["local"].block_table
        assert table.flags.c_contiguous
        assert (table[:, 3:] == -1).all()
        return table[:, :3].tolist()

    assert table(one, two) == [[14, 15, -1], [16, 17, 18]]
    assert table(two, one) == [[16, 17, 18], [14, 15, -1]]
    two.tables[:, 0] = 1
    two.version += 1
    assert table(two) == [[1, 17, 18]]
    long = PagedSequence(np.arange(640), 2, 40)
    long.tables[:] = np.arange(40)
    long.num_pages = 40
    step = builder.build([Chunk(one, 20, 21, range(20, 21)), Chunk(long, 600, 620, range(620, 620))])
    assert step.tables["global"].block_table.shape == (2, 40)
    assert step.tables["global"].block_table[:, :2].tolist() == [[4, 5], [0, 1]]
    assert step.tables["global"].slot_mapping.tolist() == [5 * 16 + 4, *range(600, 620)]
    assert table(one) == [[14, 15, -1]]


def test_an_engine_is_never_asked_for_no_row_at_all() -> None:
    builder = StepBuilder(["global", "local"], 16, max_tokens=32, max_seqs=4, max_pages=8)
    step = builder.build([Chunk(sequence(0, [4, 5]), 20, 30, range(30, 30))])
    assert step.logits_indices.tolist() == [9]

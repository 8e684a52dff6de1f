"""What the KV cache takes and gives, in rows."""

from __future__ import annotations

from kvfold.pipeline.show.cache_tables import kv_bytes_table, turns_table
from kvfold.pipeline.show.table import Cell
from kvfold.plugins.contract.kv_savings import KvBytes
from kvfold.runtime.metrics import Usage


def test_a_smaller_cache_is_good_and_a_larger_one_bad() -> None:
    table = kv_bytes_table([KvBytes(1, 1024, 256), KvBytes(2048, 1024, 2048)])
    assert table.rows == (
        (Cell("new token"), Cell("1 KiB"), Cell("256 B"), Cell("4.0 x", "good")),
        (Cell("2,048 tokens"), Cell("1 KiB"), Cell("2 KiB"), Cell("0.5 x", "bad")),
    )


def test_turns_are_numbered_and_what_was_not_timed_is_a_dash() -> None:
    turns = (
        Usage(
            prompt_tokens=1200,
            reused_tokens=1000,
            prefilled_tokens=200,
            completion_tokens=20,
            recomputed_tokens=0,
            queued_seconds=0.0,
            time_to_first_token=first,
            tokens_per_second=rate,
        )
        for first, rate in ((0.061, 97.34), (None, None))
    )
    rows = [[cell.text for cell in row] for row in turns_table(list(turns)).rows]
    assert rows == [
        ["1", "1,200", "1,000", "200", "20", "61 ms", "97.3"],
        ["2", "1,200", "1,000", "200", "20", "-", "-"],
    ]

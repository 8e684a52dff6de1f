"""A trace replayed: its times, its lengths, and the blocks that prompts share."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from kvfold.pipeline.bench.serving.scenarios.long import trace_replay
from kvfold.plugins.contract.errors import RequestError
from tests.pipeline.bench.serving.test_serve_scenarios import answer, bench_of, figure


def write_trace(path: Path) -> Path:
    rows = [(0, 1024, 32, [1, 2]), (100, 1536, 16, [1, 2, 3]), (200, 600, 64, [4, 5])]
    keys = ("timestamp", "input_length", "output_length", "hash_ids")
    path.write_text("".join(json.dumps(dict(zip(keys, row, strict=True))) + "\n" for row in rows))
    return path


def test_a_trace_keeps_its_times_lengths_and_shared_blocks(tmp_path: Path) -> None:
    first, second, third = trace_replay.read_trace(write_trace(tmp_path / "trace.jsonl"))
    assert [each.at for each in (first, second, third)] == pytest.approx([0, 0.4, 0.8])
    assert [each.new_tokens for each in (first, second, third)] == [2, 1, 4]
    prompts = [each.prompt(5000) for each in (first, second, third)]
    assert [len(prompt) for prompt in prompts] == [64, 96, 37]
    assert prompts[1][:64] == prompts[0]
    assert prompts[2][:32] != prompts[0][:32]


def test_a_trace_is_replayed(tmp_path: Path) -> None:
    bench = bench_of(tmp_path)
    with pytest.raises(RequestError, match="--trace"):
        answer(trace_replay.measure, bench)
    found = answer(trace_replay.measure, replace(bench, trace=write_trace(tmp_path / "trace.jsonl")))
    assert found.loads["trace"][0].completion_tokens == 7
    assert figure(found, "from the cache").value == pytest.approx(50, abs=1)
    assert figure(found, "within").value > 0


def test_a_file_that_is_no_trace_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"time": 1}\n')
    with pytest.raises(RequestError, match=r"x.jsonl, line 1: .*Mooncake"):
        list(trace_replay.read_trace(path))

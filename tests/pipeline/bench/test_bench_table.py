"""What `kvfold bench` writes: tables with medians, and raw samples."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from kvfold.pipeline.bench.bench_results import BenchResult, ContenderResult
from kvfold.pipeline.bench.bench_table import bench_table, format_value
from kvfold.pipeline.bench.describe_machine import Machine
from kvfold.pipeline.bench.describe_plan import describe_plan
from kvfold.pipeline.bench.workloads import workloads
from kvfold.pipeline.show.markdown import write_table
from kvfold.pipeline.show.terminal import draw_table
from kvfold.plugins.contract.attention_shape import AttentionShape
from kvfold.plugins.contract.plan_presets import Preset, build_plan


def result_of_two() -> BenchResult:
    slow = ContenderResult("kvfold", "int8", "0.1.0", {"prefill_512": [300.0, 100.0, 200.0], "load": [0.5]})
    fast = ContenderResult("llama.cpp", "Q8_0", "1.2", {"prefill_512": [461.0], "load": [0.75]})
    return BenchResult(
        command="kvfold bench demo",
        machine=Machine("a CPU", "Linux", "3.11", 0.25, "2026-01-01T00:00:00Z"),
        threads=2,
        rounds=3,
        plan="5 layers keep 2 KV banks",
        metrics=[*workloads.Single(512, 0).metrics, workloads.LOAD, workloads.MEMORY],
        contenders=[slow, fast],
        skipped=[],
    )


def test_markdown_has_medians_and_marks_the_best_of_each_unit() -> None:
    lines = write_table(bench_table(result_of_two())).splitlines()
    assert lines[0] == "|  | kvfold 0.1.0 (int8) | llama.cpp 1.2 (Q8_0) |"
    assert lines[2] == "| prefill 512, tokens/s | 200 | **461** |"
    assert lines[3] == "| load, s | **0.50** | 0.75 |"
    assert lines[4] == "| peak memory, MiB | - | - |"
    assert lines[-1].startswith(
        "Medians of 3 fresh processes after a warm-up, 2 threads; a CPU; load average at start 0.25"
    )
    assert "`kvfold bench demo`" in lines[-1]
    assert "kvfold's plan: 5 layers keep 2 KV banks; its peers run the model unfolded" in lines[-1]


def test_a_plan_is_described_by_its_windows_and_dtypes() -> None:
    shape = AttentionShape(num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, head_dim=64)
    horizon, identity = Preset(preset="horizon", sliding_window=1024), Preset(preset="identity")
    assert describe_plan(build_plan(horizon, shape)) == (
        "30 layers keep 30 KV banks: 5 global in int8, 25 of window 1,024 with 4 sinks in int8"
    )
    assert describe_plan(build_plan(identity, shape)) == "30 layers keep 30 KV banks: 30 global in float32"


def test_markdown_names_who_was_not_measured() -> None:
    result = replace(result_of_two(), skipped=["OpenVINO GenAI is not installed; pip install it"])
    result.contenders[1].failure = "round 2: exit code 1:\nits last words"
    text = write_table(bench_table(result))
    assert "Not measured: OpenVINO GenAI is not installed" in text
    assert "Not measured: llama.cpp failed: round 2: exit code 1" in text
    assert "last words" not in text


def test_terminal_table_shows_every_contender_and_metric() -> None:
    printed = io.StringIO()
    Console(file=printed, width=200).print(draw_table(bench_table(result_of_two())))
    for text in ("kvfold 0.1.0", "llama.cpp 1.2", "prefill 512", "461", "Q8_0", "tokens/s"):
        assert text in printed.getvalue()


@pytest.mark.parametrize(
    ("value", "text"), [(1011.2, "1,011"), (99.96, "100"), (26.04, "26.0"), (0.254, "0.25"), (None, "-")]
)
def test_values_have_three_digits(value: float | None, text: str) -> None:
    assert format_value(value) == text


def test_json_keeps_raw_samples(tmp_path: Path) -> None:
    result_of_two().save(tmp_path / "bench.json")
    content = json.loads((tmp_path / "bench.json").read_text())
    assert content["contenders"][0]["samples"]["prefill_512"] == [300.0, 100.0, 200.0]
    assert content["machine"]["load_average"] == 0.25
    assert content["metrics"][0] == {"key": "prefill_512", "title": "prefill 512", "unit": "tokens/s"}

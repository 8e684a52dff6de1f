"""What `kvfold bench --serve` writes: figures beside their demands, and every sample."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from kvfold.pipeline.bench.describe_machine import Machine
from kvfold.pipeline.bench.serving.client.load_summary import summarise
from kvfold.pipeline.bench.serving.client.outcome import Load, Outcome
from kvfold.pipeline.bench.serving.serve_results import Demand, Figure, Measured, ServeResult
from kvfold.pipeline.bench.serving.serve_table import format_figure, serve_table
from kvfold.pipeline.show.markdown import write_table
from kvfold.pipeline.show.terminal import draw_table


def result_of_two_scenarios() -> ServeResult:
    done = Outcome(0.0, 2.0, "complete", 200, arrivals=(1.0, 2.0), text="a b", completion_tokens=2)
    cpu = Measured(
        (
            Figure("CPU of a streamed token, added", "µs", (90.0, 30.0, 35.0), Demand("at most", 40.0)),
            Figure("CPU of a request, in process", "ms", (0.311,)),
        ),
        {"streams": (summarise(Load(0.0, 4.0, (done,))),)},
        ("A note that a reader needs.",),
    )
    peers = Measured((Figure("kvfold over llama-server", "x", (1.2, 1.6, 1.4), Demand("at least", 2.0)),))
    return ServeResult(
        command="kvfold bench --serve",
        machine=Machine("a CPU", "Linux", "3.11", 0.25, "2026-01-01T00:00:00Z"),
        subjects=("kvfold compact", "llama-server 0.5"),
        measured={"cpu": cpu, "peers": peers},
    )


def test_figures_are_medians_beside_their_demands() -> None:
    lines = write_table(serve_table(result_of_two_scenarios())).splitlines()
    assert lines[0] == "|  | measured | demand |"
    assert lines[2] == "| cpu: CPU of a streamed token, added, µs | **35.0** | at most 40.0 |"
    assert lines[3] == "| cpu: CPU of a request, in process, ms | 0.31 |  |"
    assert lines[4].startswith("| peers: kvfold over llama-server, x | ")
    assert "1.40" in lines[4] and lines[4].endswith("| at least 2.00 |")
    assert "A note that a reader needs." in lines[-2]
    assert "kvfold compact, llama-server 0.5; a CPU; load average at start 0.25" in lines[-1]


def test_what_misses_its_demand_is_told() -> None:
    (missed,) = result_of_two_scenarios().missed
    assert missed.title == "kvfold over llama-server"
    assert [figure.met for figure in result_of_two_scenarios().measured["cpu"].figures] == [True, None]


@pytest.mark.parametrize(
    ("demand", "value", "met"),
    [
        (Demand("at most", 2.0), 2.0, True),
        (Demand("at most", 2.0), 2.1, False),
        (Demand("at least", 2.0), 2.0, True),
        (Demand("at least", 2.0), 1.9, False),
    ],
)
def test_a_demand_has_two_sides(demand: Demand, value: float, met: bool) -> None:
    assert demand.is_met(value) is met


def test_a_figure_below_nothing_keeps_its_sign() -> None:
    assert [format_figure(value) for value in (-12.34, 0.0, 1011.2)] == ["-12.3", "0.00", "1,011"]


def test_the_terminal_s_table_shows_every_figure() -> None:
    printed = io.StringIO()
    Console(file=printed, width=120).print(draw_table(serve_table(result_of_two_scenarios())))
    for text in ("CPU of a streamed token", "35.0", "at least 2.00", "kvfold bench --serve"):
        assert text in printed.getvalue()


def test_json_keeps_every_round_and_load(tmp_path: Path) -> None:
    result_of_two_scenarios().save(tmp_path / "serve.json")
    found = json.loads((tmp_path / "serve.json").read_text())
    figure, _ = found["measured"]["cpu"]["figures"]
    assert figure["samples"] == [90.0, 30.0, 35.0]
    assert figure["demand"] == {"side": "at most", "limit": 40.0}
    (load,) = found["measured"]["cpu"]["loads"]["streams"]
    assert (load["tokens_per_second"], load["statuses"]) == (0.5, {"200": 1})
    assert found["machine"]["load_average"] == 0.25

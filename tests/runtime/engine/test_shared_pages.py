"""Processes of one bundle share its weights: they are mapped from the file, and nobody copies them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kvfold.plugins.contract.step import DATA_SUFFIX, MODEL_FILE
from tests.export.graph.build_memory_worker import make
from tests.root import ROOT


@pytest.mark.skipif(sys.platform != "linux", reason="would show that two processes hold weights once")
def test_two_processes_of_one_engine_share_the_pages_of_its_weights(tmp_path: Path) -> None:
    plan = make("cpu", 4, tmp_path)
    (tmp_path / "fold.json").write_text(plan.model_dump_json())
    command = [sys.executable, "-m", "tests.runtime.engine.shared_pages_worker", str(tmp_path)]
    both = [
        subprocess.Popen(
            [*command, str(tmp_path / "fold.json")],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        for process in both:
            assert line(process) == "ready\n"
        found = [json.loads(line(process, asked=True)) for process in both]
    finally:
        for process in both:
            process.communicate("\n", timeout=60)
    size = (tmp_path / (MODEL_FILE + DATA_SUFFIX)).stat().st_size
    for held in found:
        assert held["Rss"] > 0.9 * size  # a step reads all of it, so all of it is mapped
        assert held["Pss"] < 0.6 * held["Rss"]
        assert held["Private_Dirty"] == 0


def line(process: subprocess.Popen[str], *, asked: bool = False) -> str:
    """The next line that a process writes, after one to it where it waits for that."""
    assert process.stdin is not None and process.stdout is not None
    if asked:
        process.stdin.write("\n")
        process.stdin.flush()
    return process.stdout.readline()

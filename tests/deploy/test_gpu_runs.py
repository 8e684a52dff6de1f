"""`make gpu-check` and `make gpu-bench` without a GPU: what they say, and that a cut leaves whole files."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

from kvfold.pipeline.build.tuning.tuning_cases import TuningCase
from kvfold.pipeline.recipe.load_recipe import load_recipe
from tests.gpu.runs import gpu_bench, gpu_check
from tests.gpu.runs.bench_group import write_rows
from tests.gpu.runs.engine_figures import engine_figures
from tests.gpu.runs.find_gpu import GpuFacts
from tests.gpu.runs.kernel_figures import GROUPS, Peer
from tests.gpu.runs.results import Row, append_row, read_rows
from tests.gpu.runs.run_groups import NO_GPU, Group, Run

ROOT = Path(__file__).parents[2]
SERVING = ROOT / "pipeline" / "bench" / "serving"
STAND_IN_NVML = """
class NVMLError(Exception): pass
def nvmlInit(): raise NVMLError("not today")
"""
GPU = GpuFacts("Stand-in 9000", 90, "580.0")
ROW = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from tests.gpu.runs.results import Row, append_row
append_row(Path(sys.argv[-1]), Row("first", "passed", "error 1e-4", 0.5))
"""


def group(name: str, code: str, *needs: str) -> Group:
    """A stand-in that finds one row and goes on with `code`."""
    return Group(name, (sys.executable, "-c", ROW + code), needs)


def run(
    folder: Path, *groups: Group, seconds: float = 60.0, gpu: GpuFacts | str = GPU
) -> tuple[int, Any, list[str]]:
    """Exit code, the JSON, and the lines that were said."""
    lines: list[str] = []
    code = Run("gpu-check", groups, folder, seconds, together=2, threads=1, say=lines.append).run(gpu)
    assert not list(folder.glob("*.partial"))
    return code, json.loads((folder / "gpu-check.json").read_text()), lines


def outcomes(result: Any) -> dict[str, str]:
    return {each["name"]: each["outcome"] for each in result["groups"]}


@pytest.mark.parametrize("groups", [gpu_check.groups(), gpu_bench.groups([Path("bundle")], "cuda")])
def test_without_a_gpu_nothing_runs_and_both_files_say_why(groups: list[Group], tmp_path: Path) -> None:
    code, result, lines = run(tmp_path, *groups, gpu="no NVIDIA GPU: none listed")
    assert code == NO_GPU and set(outcomes(result).values()) == {"skipped"}
    assert lines == ["gpu-check: no NVIDIA GPU: none listed; nothing was run"]
    assert "no NVIDIA GPU: none listed" in (tmp_path / "gpu-check.md").read_text()


def test_every_file_of_gpu_tests_is_a_group_of_the_check() -> None:
    files = {path.stem.removeprefix("test_") for path in gpu_check.TESTS.glob("test_*.py")}
    assert {each.name.partition(" ")[0] for each in gpu_check.groups()} == files


def test_groups_run_and_those_that_lack_a_package_or_fail_are_named(tmp_path: Path) -> None:
    good, bad = group("good", ""), group("bad", "raise SystemExit('KL is 0.3')")
    code, result, lines = run(tmp_path, good, bad, group("lacks", "", "no_such_module"))
    assert code == 1
    assert outcomes(result) == {"good": "passed", "bad": "failed", "lacks": "skipped"}
    assert result["gpu"] == "Stand-in 9000, SM 90, driver 580.0"
    assert [each["why"] for each in result["groups"]] == [
        "",
        "exit code 1: KL is 0.3",
        "no_such_module cannot be imported",
    ]
    assert [len(each["rows"]) for each in result["groups"]] == [1, 1, 0]
    assert any("good: passed, 1 rows" in line for line in lines)
    assert "| first | passed | error 1e-4 | 0.5 s |" in (tmp_path / "gpu-check.md").read_text()


def test_the_clock_cuts_what_still_runs_and_keeps_its_rows(tmp_path: Path) -> None:
    sleeps = [group(name, "import time; time.sleep(600)") for name in ("one", "two", "three")]
    start = time.monotonic()
    code, result, _ = run(tmp_path, *sleeps, seconds=5.0)
    assert code == 1 and time.monotonic() - start < 60
    assert outcomes(result) == {"one": "cut", "two": "cut", "three": "cut"}
    assert [len(each["rows"]) for each in result["groups"]] == [1, 1, 0]
    assert result["groups"][2]["why"] == "time was up before it began"


def test_a_signal_in_the_middle_leaves_whole_files(tmp_path: Path) -> None:
    """The first group ends; the second tells the run to end, as a machine that is taken away does."""
    kills = group("kills", "import os, signal, time; os.kill(os.getppid(), signal.SIGTERM); time.sleep(600)")
    lines: list[str] = []
    done = Run(
        "gpu-bench", [group("done", ""), kills, group("never", "")], tmp_path, 60.0, 1, 1, lines.append
    )
    assert done.run(GPU) == 1
    result = json.loads((tmp_path / "gpu-bench.json").read_text())
    assert outcomes(result) == {"done": "passed", "kills": "cut", "never": "cut"}
    assert [len(each["rows"]) for each in result["groups"]] == [1, 1, 0]
    assert "interrupted" in lines


def test_the_bench_has_every_group_of_kernel_figures() -> None:
    assert tuple(GROUPS) == gpu_bench.PARTS


@pytest.mark.parametrize("module", ["gpu_check", "gpu_bench"])
def test_the_entry_needs_nothing_but_python_and_says_that_it_found_no_gpu(
    module: str, tmp_path: Path
) -> None:
    """Without any installed package, from wheels in a folder: one that is not here is unpacked."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with ZipFile(wheels / "pynvml-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("pynvml.py", STAND_IN_NVML)
    command = [sys.executable, "-S", "-m", f"tests.gpu.runs.{module}", "--output", str(tmp_path)]
    run = subprocess.run(
        [*command, "--wheels", str(wheels)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == NO_GPU, run.stdout + run.stderr
    assert "from wheels: pynvml\n" in run.stdout and "no NVIDIA GPU: not today" in run.stdout
    assert len(list(tmp_path.glob("gpu-*.json"))) == len(list(tmp_path.glob("gpu-*.md"))) == 1


def test_half_a_line_is_left_out(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    append_row(rows, Row("whole", "measured", "1 ms"))
    with rows.open("a") as file:
        file.write('{"name": "ha')
    assert [row.name for row in read_rows(rows)] == ["whole"]


def test_linears_in_4_bits_are_measured_beside_float16_as_the_docs_say() -> None:
    """Both recipes fit the target with the same caches; each bundle that is named is a group."""
    recipes = [
        load_recipe(str(SERVING / f"identity-{kind}.yaml"), "cuda", (90,)) for kind in ("int8", "int4")
    ]
    assert [recipe.quantize.weights for recipe in recipes] == ["int8", "int4"]
    assert recipes[0].plan == recipes[1].plan and recipes[0].cuda == recipes[1].cuda
    bundles = [Path("bundles") / recipe.name for recipe in recipes]
    names = [each.name for each in gpu_bench.groups(bundles, "cuda")]
    assert names == [*gpu_bench.PARTS, "cuda identity-int8", "cuda identity-int4"]
    measured = [figure.name for figure in engine_figures(StandInLab())]
    assert {f"decode, {count} sequences" for count in (1, 64, 256)} < set(measured)
    assert {"prefill, 1 x 7,000", "prefill, 32 x 2,048"} < set(measured)


class StandInLab:
    """A GPU and an engine on which everything takes a millisecond; cuDNN takes no grouped heads."""

    def ours(self, case: TuningCase) -> float:
        return 1e-3

    def peer(self, name: Peer, case: TuningCase) -> float | str:
        return 2e-3 if name == "flash-attention 2" else "cannot: no grouped heads"

    def copied_bytes_per_second(self) -> float:
        return 2e12

    def generate(self, prompts: int, prompt_tokens: int, new_tokens: int) -> float:
        return 1e-3 * new_tokens

    def second_turn(self, tokens: int) -> float:
        return 4e-3


@pytest.mark.parametrize("name", GROUPS)
def test_each_group_of_kernel_figures_fills_its_rows(name: str, tmp_path: Path) -> None:
    write_rows(GROUPS[name](StandInLab()), tmp_path / "rows.jsonl")
    rows = read_rows(tmp_path / "rows.jsonl")
    assert rows and len({row.name for row in rows}) == len(rows)


def test_figures_say_what_they_are_beside() -> None:
    first, *_ = GROUPS["prefill"](StandInLab())
    flops = 4 * 32 * 128 * 8192 * 8192 / 2
    assert first.name == "prefill 32/8x128, 8,192 tokens, float16 cache"
    assert first.figures == (
        f"1.000 ms, {flops / 1e-3 / 1e12:.0f} TFLOP/s; flash-attention 2 2.000 ms, 2.00 of its speed; "
        "cuDNN: cannot: no grouped heads"
    )
    read = {figure.name: figure.figures for figure in GROUPS["decode"](StandInLab())}
    share = 2 * 64 * 8192 * 8 * 128 / 1e-3 / 2e12
    assert read["decode 32/8x128, 64 x 8,192, int8 cache"].endswith(f"{share:.0%} of the copy")


def test_figures_of_an_engine_leave_prefill_out_of_decode() -> None:
    found = {figure.name: figure.figures for figure in engine_figures(StandInLab())}
    assert found["decode, 64 sequences"] == "64,000 tokens/s"
    assert found["prefill, 32 x 2,048"] == "65,536,000 tokens/s"
    assert found["second turn of 2,000 tokens"] == "4.00 ms to its first token"

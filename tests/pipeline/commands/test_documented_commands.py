"""Every command that a page or a command's help names is run as it stands there, on the shipped plans.

`tiny_shipped.py` stands in for the shipped recipes: their plans on a tiny model. What is
not run as it stands is in `INSTEAD` or `NOT_RUN`, with the reason.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from kvfold.pipeline.bench.workloads.workloads import MEMORY, QUICK, list_metrics
from kvfold.pipeline.cli import COMMANDS, cli
from kvfold.pipeline.recipe import recipe_files
from tests.pipeline.commands import documented
from tests.pipeline.commands.documented import Documented
from tests.pipeline.commands.tiny_shipped import HEAL, SMALL, write_recipe, write_tiny_shipped
from tests.root import ROOT

LINES = documented.documented()
# A command, the options that its lines end with, whatever they say, and why.
INSTEAD = {
    "monitor": ("--once", "it goes on until Ctrl-C"),
    "bench": (
        "--peers none --quick --rounds 1",
        "the peers are not installed, and more rounds take minutes",
    ),
    "write": ("--tokens 300", "more take minutes"),
}
# Words of a line, and why it is not run here; its arguments are parsed.
NOT_RUN = {
    "(kvfold|make) serve": "serves until a signal: test_served_bundle.py does",
    "--resume": "goes on with a chat that was kept: test_kept_chats.py does",
    "--target tensorrt": "builds or runs a plan: tests/pipeline/build and tests/gpu do",
    "--target tensorrt-rtx": "builds or runs a plan: tests/pipeline/build and tests/gpu do",
    "--target cuda": "is for a GPU: tests/pipeline/build/test_cuda_build.py and tests/gpu do",
    "kvfold tune": "times kernels on a GPU: tests/pipeline/build/tuning does, with stand-ins",
    "bench --serve": "puts servers under load for minutes: tests/pipeline/bench/serving does, for seconds",
    "bench .*--trace": "needs a trace of requests: tests/pipeline/bench/trace writes some",
    "--peer-python": "needs the peers, and the network to get them",
}


def why_not(line: Documented) -> str | None:
    """Why a line is not run, if it is not."""
    return next((why for words, why in NOT_RUN.items() if re.search(rf"{words}( |$)", line.line)), None)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A user's folder, where the shipped recipes are small."""
    folder = tmp_path_factory.mktemp("documented")
    (folder / "shipped").mkdir()
    (folder / "work").mkdir()
    write_tiny_shipped(folder / "shipped")
    for name in ("model", "text.txt", "words.txt"):
        (folder / "work" / name).symlink_to(folder / "shipped" / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe_files, "SHIPPED", folder / "shipped")
        patch.chdir(folder / "work")
        yield folder / "work"


def run(arguments: list[str], typed: str | None) -> str:
    """What a command printed; it must succeed, but for a doctor who finds something."""
    result = CliRunner().invoke(cli, arguments, input=f"{typed or 'a cab'}\n")
    fine = (0, 2) if arguments == ["doctor"] else (0,)
    assert result.exit_code in fine, f"{result.output}\n{result.exception!r}"
    return result.output


def prepare(arguments: list[str]) -> None:
    """What a reader has before typing this: recipes of his own, and a bundle that is named by its folder."""
    for path in documented.recipe_files(arguments):
        if not path.exists():
            write_recipe(path, {**SMALL, "plan": {"preset": "horizon", "sliding_window": 64}, "heal": HEAL})
    for word in arguments:
        if word.startswith("bundles/"):
            run(["build", word.removeprefix("bundles/")], None)


@pytest.mark.parametrize("line", [line for line in LINES if not why_not(line)], ids=lambda line: line.line)
def test_it_runs(line: Documented, work: Path) -> None:
    command, *rest = line.arguments
    arguments = [command, *(word.replace("/tmp/", f"{work}/tmp/") for word in rest)]
    added, _ = INSTEAD.get(command, ("", ""))
    prepare(arguments)
    run([*arguments, *added.split()], line.typed)


@pytest.mark.parametrize("line", [line for line in LINES if why_not(line)], ids=lambda line: line.line)
def test_what_is_not_run_is_understood(line: Documented) -> None:
    assert documented.parse_arguments(line.arguments) == []


@pytest.mark.parametrize("mention", documented.mentioned(), ids=lambda line: f"{line.place}: {line.line}")
def test_what_a_sentence_names_is_understood(mention: Documented) -> None:
    assert documented.parse_arguments(mention.arguments) == []


def test_every_command_is_named_somewhere() -> None:
    assert {line.arguments[0] for line in LINES} == set(COMMANDS)


@pytest.mark.parametrize("shape", ["compact", "balanced"])
def test_the_bench_runs_on_the_plans_that_were_searched(shape: str, work: Path) -> None:
    run(["bench", shape, "--peers", "none", "--quick", "--rounds", "1"], None)
    result = json.loads((work / "bundles" / shape / "report" / "bench.json").read_text())
    (kvfold,) = result["contenders"]
    expected = {metric.key for metric in list_metrics(QUICK)}
    assert kvfold["samples"].keys() | {MEMORY.key} == expected  # memory is known on Linux alone
    assert all(value > 0 for values in kvfold["samples"].values() for value in values)


def test_make_lines_name_what_the_makefile_has() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    texts = [page.read_text(encoding="utf-8") for page in documented.PAGES]
    lines = [line for text in texts for line in documented.blocks(text)]
    codes = [code.strip() for line in lines for code in line.partition("#")[0].split("&&")]
    made = [code for code in codes if code.startswith("make ")]
    assert made
    for code in made:
        _, target, *variables = shlex.split(code)
        assert re.search(rf"^{target}:", makefile, re.M), f"the Makefile has no target {target}"
        for name in (variable.partition("=")[0] for variable in variables):
            assert re.search(rf"^{name} \?=", makefile, re.M), f"the Makefile has no variable {name}"


@pytest.mark.parametrize("wrong", ["kvfold explode compact", "kvfold build --explode"])
def test_a_wrong_line_would_be_found(wrong: str) -> None:
    (line,) = documented.command_lines([f"  {wrong}   explained", "kvfolds are"], "a page")
    with pytest.raises(click.UsageError):
        documented.parse_arguments(line.arguments)

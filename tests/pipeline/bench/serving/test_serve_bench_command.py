"""`kvfold bench --serve` as it is typed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from kvfold.pipeline import bring_up_to_date as up_to_date
from kvfold.pipeline.bench.serving import run_serve_bench as runner
from kvfold.pipeline.bench.serving.scenario_names import USUAL
from kvfold.pipeline.bench.serving.scenarios.scenario import Bench
from kvfold.pipeline.bench.serving.serve_results import Measured, ServeResult
from kvfold.pipeline.commands.measure.bench import command
from kvfold.pipeline.recipe.load_recipe import load_recipe
from kvfold.plugins.contract.errors import MissingExtraError, RecipeError, ValidationError
from kvfold.plugins.contract.progress import Progress
from tests.pipeline.bench.serving.test_serve_table import result_of_two_scenarios


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Bench, tuple[str, ...]]]:
    """What was to be measured; nothing is."""
    found: list[tuple[Bench, tuple[str, ...]]] = []

    def run(bench: Bench, names: Sequence[str], console: Console) -> ServeResult:
        found.append((bench, tuple(names)))
        result = result_of_two_scenarios()
        return replace(
            result, measured={"cpu": result.measured["cpu"]} if "cpu" in names else result.measured
        )

    monkeypatch.setattr(runner, "run_serve_bench", run)
    return found


@pytest.fixture
def bundle(recipes: Path, small_bundle: Path, tmp_path: Path) -> list[str]:
    """Arguments of a bundle that is up to date."""
    shutil.copytree(small_bundle, tmp_path / "bundle")
    return [str(recipes / "small.yaml"), "-o", str(tmp_path / "bundle")]


def bench(*arguments: str) -> Result:
    return CliRunner().invoke(command, arguments)


def test_what_was_asked_for_is_measured_and_written(
    asked: list[tuple[Bench, tuple[str, ...]]], bundle: list[str], tmp_path: Path
) -> None:
    options = ["--scenario", "cpu", "--scenario", "soak", "--minutes", "2", "--rounds", "1"]
    run = bench(*bundle, "--serve", *options, "--json", str(tmp_path / "figures.json"))
    assert run.exit_code == 0, run.output
    ((found, names),) = asked
    assert names == ("cpu", "soak")
    assert (found.bundle, found.vocab_size, found.rounds) == (tmp_path / "bundle", 97, 1)
    assert (found.soak_seconds, found.peer, found.beside) == (120, None, ())
    assert "cpu" in json.loads((tmp_path / "figures.json").read_text())["measured"]
    assert "at most 40.0" in (tmp_path / "bundle" / "report" / "serve.md").read_text()


def test_a_missed_demand_is_an_error_after_all_is_written(
    asked: list[tuple[Bench, tuple[str, ...]]], bundle: list[str], tmp_path: Path
) -> None:
    run = bench(*bundle, "--serve", "--scenario", "peers")
    assert isinstance(run.exception, ValidationError)
    assert "1 figures miss their demand: kvfold over llama-server: 1.4 x" in str(run.exception)
    assert (tmp_path / "bundle" / "report" / "serve.json").is_file()


def test_without_names_the_short_ones_are_measured(
    asked: list[tuple[Bench, tuple[str, ...]]], bundle: list[str]
) -> None:
    bench(*bundle, "--serve")
    assert [names for _, names in asked] == [USUAL]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--scenario", "cpu"], "--scenario: for servers; add --serve"),
        (["--json", "x.json", "--minutes", "3"], "--minutes, --json: for servers"),
        (["--serve", "--quick"], "--quick: for an engine in process"),
        (["--serve", "--peers", "none"], "--peers: for an engine in process"),
        (["--serve", "--scenario", "cup"], "'cup' is not one of 'cpu'"),
    ],
)
def test_options_that_would_do_nothing_are_refused(arguments: list[str], said: str) -> None:
    run = bench(*arguments)
    assert run.exit_code == 2
    assert said in run.output


@pytest.mark.parametrize("how", [[], ["--serve"]])
def test_bundles_of_two_checkpoints_are_not_compared(
    how: list[str], bundle: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether by an engine or by a server."""
    monkeypatch.chdir(tmp_path)
    other = tmp_path / "bundles" / "other"
    other.mkdir(parents=True)
    (other / "source.json").write_text(json.dumps({"fingerprint": "another"}))
    (tmp_path / "other.yaml").write_text(Path(bundle[0]).read_text())
    (tmp_path / "text.txt").write_text("Calibration.")
    monkeypatch.setattr(up_to_date, "bring_up_to_date", lambda name, root, until, target: load_recipe(name))
    run = bench(*bundle, *how, "--beside", "other.yaml")
    assert isinstance(run.exception, RecipeError)
    assert "--beside other.yaml is of another checkpoint than" in str(run.exception)


def test_the_extra_is_asked_for_first(monkeypatch: pytest.MonkeyPatch) -> None:
    from kvfold.pipeline.machine import extras

    monkeypatch.setattr(extras, "extra_modules", lambda: {"serve-bench": ("aiohttp",)})
    monkeypatch.setattr(extras, "is_installed", lambda module: False)
    run = bench("--serve")
    assert isinstance(run.exception, MissingExtraError)
    assert "aiohttp" in str(run.exception) and "kvfold[serve-bench]" in str(run.exception)


def test_each_scenario_is_answered_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def answers(name: str) -> object:
        async def measure(bench: Bench, progress: Progress) -> Measured:
            progress(0.5)
            order.append(name)
            return Measured(())

        return measure

    monkeypatch.setattr(runner, "SCENARIOS", {name: answers(name) for name in ("soak", "cpu")})
    with (tmp_path / "printed").open("w") as printed:
        console = Console(file=printed, width=200)
        found = runner.run_serve_bench(Bench(Path("compact"), 97, tmp_path), ["soak", "cpu"], console)
    assert order == list(found.measured) == ["soak", "cpu"]
    assert found.subjects == ("kvfold compact",)
    assert "1 of 2: chats, aborts, bad requests" in (tmp_path / "printed").read_text()

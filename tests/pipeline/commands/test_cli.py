"""The command line: help that is instant and teaches, errors without a traceback, exit codes."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from kvfold.pipeline.cli import COMMANDS, cli, main
from kvfold.pipeline.commands.make.demo import NEXT, next_line
from kvfold.pipeline.recipe.recipe_files import DEFAULT_RECIPE, shipped_recipes
from kvfold.plugins.contract.errors import RecipeError, ValidationError


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["kvfold", *arguments])
    with pytest.raises(SystemExit) as error:
        main()
    assert isinstance(error.value.code, int)
    return error.value.code


def test_help_names_every_command_and_recipe_and_imports_no_command() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from kvfold.pipeline.cli import cli;"
        "print(CliRunner().invoke(cli, ['--help']).output);"
        "sys.exit(bool({'torch', 'onnxruntime', 'kvfold.pipeline.recipe.recipe', 'rich'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert all(re.search(rf"^  {name}\s", result.stdout, re.MULTILINE) for name in COMMANDS)
    assert all(re.search(rf"\b{name}\b", result.stdout) for name in shipped_recipes())


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_explains_itself_with_examples(name: str) -> None:
    result = CliRunner().invoke(cli, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert "Example" in result.output
    assert f"kvfold {name}" in result.output


def test_an_unknown_command_and_option_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_main(monkeypatch, "explode") == 2
    assert run_main(monkeypatch, "build", "--explode") == 2


def test_errors_are_printed_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, "export", "no-such-recipe") == 2
    printed = capsys.readouterr().err
    assert printed.startswith("RecipeError: there is no recipe 'no-such-recipe'")
    assert "Traceback" not in printed


@pytest.mark.parametrize("name", ["inspect", "run"])
def test_a_folder_without_a_manifest_shadows_no_shipped_recipe(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    def stop(recipe: str, *arguments: object, **options: object) -> None:
        raise RecipeError(f"looked up the recipe {recipe}")

    monkeypatch.chdir(tmp_path)
    (tmp_path / "horizon").mkdir()
    monkeypatch.setattr("kvfold.pipeline.recipe.load_recipe.load_recipe", stop)
    monkeypatch.setattr("kvfold.pipeline.bring_up_to_date.bring_up_to_date", stop)
    result = CliRunner().invoke(cli, [name, "horizon"])
    assert str(result.exception) == "looked up the recipe horizon"


def test_a_folder_that_is_no_bundle_is_said_to_be_none(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["run", str(tmp_path)])
    assert isinstance(result.exception, RecipeError)
    assert "has no manifest.json" in str(result.exception)


@pytest.mark.parametrize(
    ("error", "code"), [(ValidationError("missed"), 1), (RecipeError("bad"), 2), (KeyboardInterrupt(), 130)]
)
def test_exit_codes(monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("kvfold.pipeline.bring_up_to_date.bring_up_to_date", fail)
    assert run_main(monkeypatch, "validate", "horizon") == code


def test_a_target_that_cannot_run_here_says_so_before_any_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from kvfold.pipeline.machine.targets import TARGETS

    broken = replace(TARGETS["cpu"], why_not_build=lambda: "no compiler; install g++")
    monkeypatch.setitem(TARGETS, "cpu", broken)
    assert run_main(monkeypatch, "build", "horizon", "--output", str(tmp_path / "b")) == 2
    assert "target cpu cannot be built here: no compiler; install g++" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str) -> None:
    result = CliRunner().invoke(cli, ["completion", shell])
    assert result.exit_code == 0
    assert "_KVFOLD_COMPLETE" in result.output


def test_the_shell_completes_shipped_recipes() -> None:
    environment = {"_KVFOLD_COMPLETE": "bash_complete", "COMP_WORDS": "kvfold build i", "COMP_CWORD": "2"}
    code = "from kvfold.pipeline.cli import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert "identity" in result.stdout, result.stderr


def test_doctor_names_what_it_looked_at() -> None:
    result = CliRunner().invoke(cli, ["doctor"])
    assert result.exit_code in (0, 2)  # 2 where this machine lacks something
    for subject in (
        "CPU",
        "memory",
        "compiler",
        "CPU kernels",
        "ONNX Runtime",
        "torch",
        "TensorRT",
        "target cpu",
    ):
        assert subject in result.output


def test_chatting_with_a_built_bundle_needs_no_torch() -> None:
    code = (
        "import sys, kvfold.pipeline.commands.use.run; sys.exit(bool({'torch', 'onnx'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_reading_a_recipe_and_a_report_needs_no_torch() -> None:
    code = (
        "import sys; from kvfold.pipeline.recipe.load_recipe import load_recipe;"
        "import kvfold.pipeline.stages.order, kvfold.pipeline.report.report_page;"
        "load_recipe('horizon'); print({'torch', 'onnx', 'polygraphy'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "set()", result.stderr


@pytest.mark.parametrize(
    ("typed", "meant"), [("buidl", "build"), ("inspct", "inspect"), ("benchmark", "bench"), ("zzz", None)]
)
def test_a_wrong_command_suggests_the_closest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], typed: str, meant: str | None
) -> None:
    assert run_main(monkeypatch, typed) == 2
    said = capsys.readouterr().err
    assert f"No such command {typed!r}" in said
    assert (f"Did you mean {meant!r}?" in said) == (meant is not None)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("compat", "compact"), ("balance.yaml", "balanced"), ("mein.yaml", "mine.yaml"), ("zzz", None)],
)
def test_a_wrong_recipe_suggests_the_closest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, typed: str, meant: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("model: {source: demo}\n")
    result = CliRunner().invoke(cli, ["export", typed])
    assert isinstance(result.exception, RecipeError)
    assert (f"did you mean {meant!r}?" in str(result.exception)) == (meant is not None)


def test_the_demo_says_what_to_try_next_as_its_reader_types_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAKELEVEL", raising=False)
    assert next_line("run", "horizon", None) == "kvfold run horizon"
    assert next_line("run", "horizon", Path("mine")) == "kvfold run mine"
    assert next_line("eval", "horizon", Path("mine")) == "kvfold eval horizon -o mine"
    monkeypatch.setenv("MAKELEVEL", "1")
    assert next_line("run", "horizon", None) == "make run RECIPE=horizon"
    assert next_line("run", DEFAULT_RECIPE, None) == "make run"
    assert set(NEXT) < set(COMMANDS)

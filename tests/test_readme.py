"""The README is run: its Python, its recipe, its command lines and its make targets."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import get_args

import click
import pytest

from kvfold.export.model.families import FAMILIES
from kvfold.pipeline.bench.contenders import PEERS, contender_module
from kvfold.pipeline.cli import cli
from kvfold.pipeline.recipe.load_recipe import load_recipe
from kvfold.pipeline.stages.order import STAGES
from kvfold.pipeline.workspace.run_stages import run_stages
from kvfold.plugins.contract.plan_presets import PresetName
from tests.export.tiny_checkpoints import random_model, write_folder
from tests.pipeline.fake_stages import QuietDisplay
from tests.root import ROOT

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
# (language, content) of each fenced block.
BLOCKS: list[tuple[str, str]] = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.M | re.S)
LINES = [line for language, content in BLOCKS if not language for line in content.splitlines()]
KVFOLD = [line for line in LINES if line.startswith("kvfold ")]
MAKE = [line for line in LINES if line.startswith("make ")]
TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}<|im_end|>{% endfor %}"
RECIPE = """
model: {source: model}
plan: {preset: horizon, sliding_window: 32, sink_size: 4, global_every: 2}
calibration: {source: text.txt, tokens: 256, sequence_length: 64}
"""


def block(language: str) -> str:
    """The README's only block in a language."""
    (content,) = (content for name, content in BLOCKS if name == language)
    return content


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a tiny chat model and a text beside it."""
    write_folder(tmp_path / "model", random_model("llama", max_position_embeddings=2048))
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    (tmp_path / "text.txt").write_text("the cab of a folded cache " * 100)
    return tmp_path


def test_every_family_preset_and_peer_is_named() -> None:
    titles = [contender_module(peer).TITLE for peer in PEERS]
    names = [*(family.name for family in FAMILIES), *get_args(PresetName), *titles]
    assert [name for name in names if not re.search(rf"\b{re.escape(name)}\b", TEXT)] == []


def test_python_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "compact.yaml").write_text(RECIPE)
    recipe = load_recipe(str(folder / "compact.yaml"))
    run_stages(recipe, folder / "bundles" / "compact", STAGES, QuietDisplay(), until="build-cpu")
    monkeypatch.chdir(folder)
    capsys.readouterr()
    exec(compile(block("python"), "README.md", "exec"), {})
    reused = re.search(r"(\d+) tokens came from the cache", capsys.readouterr().out)
    assert reused is not None
    assert int(reused[1]) > 0


def test_recipe_is_valid(folder: Path) -> None:
    text = re.sub(r"source: /models/\S+", "source: model", block("yaml"))
    (folder / "mine.yaml").write_text(text)
    (folder / "chats.jsonl").write_text('{"text": "a cab"}\n')
    recipe = load_recipe(str(folder / "mine.yaml"))
    assert recipe.model.source == str(folder / "model")
    assert recipe.calibration[0].source == str(folder / "chats.jsonl")


def check_arguments(name: str, arguments: list[str]) -> None:
    """Parse, without running and without looking for the files that are named."""
    command = cli.get_command(click.Context(cli), name)
    assert command is not None, f"no command {name}"
    _, left_over, _ = command.make_parser(click.Context(command)).parse_args(arguments)
    assert not left_over


@pytest.mark.parametrize("line", KVFOLD)
def test_command_lines_parse(line: str) -> None:
    _, name, *arguments = shlex.split(line, comments=True)
    check_arguments(name, arguments)


@pytest.mark.parametrize("line", MAKE)
def test_make_targets_exist(line: str) -> None:
    _, target, *variables = shlex.split(line, comments=True)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{target}:", makefile, re.M), f"the Makefile has no target {target}"
    for variable in variables:
        name, _, value = variable.partition("=")
        assert re.search(rf"^{name} \?=", makefile, re.M), f"the Makefile has no variable {name}"
        if name == "ARGS":
            check_arguments(target, shlex.split(value))


def test_nothing_was_missed() -> None:
    assert len(KVFOLD) >= 7
    assert {"make demo", "make test"} <= {line.partition("#")[0].strip() for line in MAKE}

"""The README is run: its Python and its recipes; `test_documented_commands.py` runs what it names."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

import pytest

from kvfold.export.model.families import FAMILIES
from kvfold.pipeline.bench.contenders import PEERS, contender_module
from kvfold.pipeline.recipe.load_recipe import load_recipe
from kvfold.pipeline.stages.order import STAGES
from kvfold.pipeline.workspace.run_stages import run_stages
from kvfold.plugins.contract.plan_presets import PresetName
from tests.export.tiny_checkpoints import random_model, write_folder
from tests.pipeline.commands.documented import PAGES
from tests.pipeline.fake_stages import QuietDisplay
from tests.root import ROOT

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
# (language, content) of each fenced block.
BLOCKS: list[tuple[str, str]] = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.M | re.S)
TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}<|im_end|>{% endfor %}"
RECIPE = """
model: {source: model}
plan: {preset: horizon, sliding_window: 32, sink_size: 4, global_every: 2}
calibration: {source: text.txt, tokens: 256, sequence_length: 64}
"""


def blocks(language: str) -> list[str]:
    """The README's blocks in a language."""
    return [content for name, content in BLOCKS if name == language]


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
    pages = " ".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [name for name in names if not re.search(rf"\b{re.escape(name)}\b", pages)] == []


def test_python_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = blocks("python")
    for name in set(re.findall(r"bundles/(\w+)", code)):
        (folder / f"{name}.yaml").write_text(RECIPE)
        recipe = load_recipe(str(folder / f"{name}.yaml"))
        run_stages(recipe, folder / "bundles" / name, STAGES, QuietDisplay(), until="build-cpu")
    monkeypatch.chdir(folder)
    capsys.readouterr()
    exec(compile(code, "README.md", "exec"), {})
    reused = re.search(r"(\d+) tokens came from the cache", capsys.readouterr().out)
    assert reused is not None
    assert int(reused[1]) > 0


def test_recipes_are_valid(folder: Path) -> None:
    (folder / "chats.jsonl").write_text('{"text": "a cab"}\n')
    for number, content in enumerate(blocks("yaml")):
        text = re.sub(r"source: /models/\S+", "source: model", content)
        (folder / f"mine{number}.yaml").write_text(text)
        assert load_recipe(str(folder / f"mine{number}.yaml")).model.source == str(folder / "model")


def test_the_command_to_begin_with_is_there() -> None:
    assert "make demo" in (line.partition("#")[0].strip() for line in TEXT.splitlines())

"""What is said before long work: counts that are those of the work, and times that follow from them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from kvfold.pipeline.quality.evaluate.material import prepare_material
from kvfold.pipeline.recipe.load_recipe import load_recipe
from kvfold.pipeline.studies import outlook
from kvfold.pipeline.studies.evaluation_outlook import evaluation_tasks, tokens_to_read
from kvfold.pipeline.studies.outlook import UNKNOWN, Task, say_outlook, seconds_to_read
from kvfold.pipeline.workspace.read_checkpoint import read_checkpoint
from kvfold.pipeline.workspace.workspace import Workspace
from kvfold.runtime.text.tokenizer import BundleTokenizer
from tests.export.fold.test_fold import model
from tests.pipeline.commands.test_eval_command import EVALUATE
from tests.pipeline.tiny_recipe import RECIPE, write_tiny_recipe


def said(*tasks: Task) -> list[str]:
    console = Console(file=io.StringIO(), width=60)
    say_outlook(console, tasks)
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_what_is_known_is_summed_and_what_is_not_is_said() -> None:
    assert said() == []
    assert said(Task("read", 12.0)) == ["To do, before the tables:", "  read: about 12 s"]
    assert said(Task("read", 170.0), Task("fold", 125.0, at_least=True), Task("write")) == [
        "To do, before the tables:",
        "  read: about 3 min",
        "  fold: at least about 2 min",
        "  write",
        "Together at least about 5 min; how long the rest takes, its",
        "progress will tell.",
    ]
    assert said(Task("write"))[-1] == f"How long that {UNKNOWN}"
    assert said(Task("read", 20.0), Task("fold", 20.0))[-1] == "Together about 40 s."


def test_reading_takes_as_long_as_all_layers_and_the_whole_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlook, "_fastest", lambda work: work() is not None and 1.0)
    monkeypatch.setattr(outlook, "PROBE_VOCAB", 10)
    config, _ = model("llama", num_hidden_layers=4, vocab_size=30)
    assert seconds_to_read(config, outlook.PROBE_TOKENS) == 4 + 3
    assert seconds_to_read(config, 2 * outlook.PROBE_TOKENS, scored=0.5) == 2 * (4 + 1.5)


def test_a_measured_pace_is_of_this_machine() -> None:
    config, _ = model("llama")
    assert 0 < seconds_to_read(config, 1000) < 60


def test_an_evaluation_counts_what_it_reads(tmp_path: Path) -> None:
    """As the evaluation itself does, passages aside; prompts end at a sentence, short of their length."""
    path = write_tiny_recipe(tmp_path, RECIPE + EVALUATE, max_position_embeddings=512)
    (tmp_path / "words.txt").write_text("a cab and a tab\n")
    recipe = load_recipe(str(path))
    checkpoint = read_checkpoint(Workspace(recipe, tmp_path))
    tokenizer = BundleTokenizer(checkpoint.tokenizer.backend, checkpoint.tokenizer.config)
    sequences = np.zeros((4, 256), dtype=np.int64)
    material = prepare_material(recipe.evaluate, sequences, tokenizer, 512)
    asked = sum(cell.length * len(cell.haystacks) for cell in material.cells)
    questions = sum(len(question.token_ids) for question in material.questions)
    assert tokens_to_read(recipe, 512) == material.tokens(3, 3) + 3 * (asked - questions)
    assert 0.85 * asked < questions <= asked
    build, reading = evaluation_tasks(recipe, tmp_path / "bundle")
    assert build.seconds is None and "building the engine" in build.doing
    assert reading.seconds is not None and f"{tokens_to_read(recipe, 512):,} tokens" in reading.doing

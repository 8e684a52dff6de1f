"""Text that the model writes: the unfolded model's own, the same in any company and after any kill."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kvfold.export.checkpoint.checkpoint import Checkpoint
from kvfold.export.checkpoint.load_checkpoint import load_checkpoint
from kvfold.export.model.decoder import Decoder
from kvfold.pipeline.recipe.recipe_sections import TextSection
from kvfold.pipeline.texts import writer, writer_engine
from kvfold.pipeline.texts.prompts import Prompts, encode_prompt
from kvfold.pipeline.texts.writer import PIECE, write_text
from kvfold.pipeline.texts.writer_engine import unfolded_plan, writer_key
from kvfold.plugins.contract.errors import CalibrationError
from kvfold.runtime.engine.engine_config import EngineConfig
from kvfold.runtime.engine.onnxruntime_engine import OnnxRuntimeEngine
from kvfold.runtime.engine.protocol import StepInputs
from kvfold.runtime.text.tokenizer import BundleTokenizer
from tests.export.tiny_checkpoints import CLASSES, random_model, write_folder
from tests.tiny_model import dense_logits

TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}<|im_end|>{% endfor %}"
TEXT = TextSection(tokens=1000, sequence_length=200, seed=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("tiny"), "qwen3")


def write_model(folder: Path, family: str, **changes: Any) -> Path:
    write_folder(folder, random_model(family, **changes))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    return folder


@pytest.fixture(scope="module")
def checkpoint(model: Path) -> Checkpoint:
    return load_checkpoint(model)


@pytest.fixture(scope="module")
def engine(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A writer's folder whose engine is made."""
    folder = tmp_path_factory.mktemp("writer")
    write(checkpoint, folder, TEXT)
    return folder


@pytest.fixture
def folder(engine: Path) -> Iterator[Path]:
    """That folder without a text."""
    for path in engine.glob("*/*.jsonl"):
        path.unlink()
    yield engine


@pytest.fixture(scope="module")
def text(checkpoint: Checkpoint, engine: Path) -> np.ndarray:
    """TEXT, written without an interruption."""
    return write(checkpoint, engine, TEXT)


def write(checkpoint: Checkpoint, folder: Path, section: TextSection) -> np.ndarray:
    return write_text(section, checkpoint, folder, lambda fraction, note="": None)


def rows_file(folder: Path) -> Path:
    (path,) = folder.glob("*/*.jsonl")
    return path


@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied head"])
def test_greedy_rows_are_the_unfolded_models_own(
    family: str, tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Token by token the likeliest one of the decoder in torch, over turns and pieces, up to the context."""
    checkpoint = load_checkpoint(write_model(tmp_path / "model", family, tie_word_embeddings=tied))
    tokenizer = checkpoint.tokenizer
    ends = (*tokenizer.config.eos_token_ids, *range(0, checkpoint.config.vocab_size, 5))
    config = tokenizer.config.model_copy(update={"eos_token_ids": ends})
    checkpoint = replace(checkpoint, tokenizer=replace(tokenizer, config=config))
    decoder = Decoder.from_weights(checkpoint.config, unfolded_plan(checkpoint), checkpoint.weights)
    prompts = Prompts(checkpoint.tokenizer, 3)
    monkeypatch.setattr(writer, "TEMPERATURE", 0.0)
    section = TextSection(tokens=4 * 256, sequence_length=256, seed=3)
    written = write(checkpoint, tmp_path / "writer", section)
    turns = 0
    for index, row in enumerate(written):
        tokens, turn = prompts.give(index, 0), 1
        while len(tokens) < 256:
            logits = dense_logits(decoder, torch.tensor([tokens]))[0, -1]
            tokens.append(int(logits.argmax()))
            if tokens[-1] in ends:
                tokens += prompts.give(index, turn)
                turn += 1
        assert row.tolist() == tokens[:256]
        turns += turn
    assert turns > len(written), "no row had a second prompt"


def test_rows_start_with_prompts_and_follow_the_seed(
    checkpoint: Checkpoint, folder: Path, text: np.ndarray
) -> None:
    assert text.shape == (5, 200)
    assert text.dtype == np.int64
    assert text.min() >= 0 and text.max() < 97
    prompts = Prompts(checkpoint.tokenizer, TEXT.seed)
    for index, row in enumerate(text):
        first = prompts.give(index, 0)
        assert row[: len(first)].tolist() == first[:200]
    assert np.array_equal(write(checkpoint, folder, TEXT), text)
    other = write(checkpoint, folder, TEXT.model_copy(update={"seed": 2}))
    assert not np.array_equal(other, text)


def test_rows_do_not_depend_on_what_is_beside_them(
    checkpoint: Checkpoint, folder: Path, text: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither on how many are written together, where even one takes more than the budget, nor in all."""
    monkeypatch.setattr(writer, "KV_BYTES", 1)
    assert np.array_equal(write(checkpoint, folder, TEXT.model_copy(update={"tokens": 400})), text[:2])
    monkeypatch.setattr(writer, "KV_BYTES", 2 * unfolded_plan(checkpoint).kv_bytes(200))
    assert np.array_equal(write(checkpoint, folder, TEXT), text)


def test_as_many_rows_run_as_the_budget_holds(
    checkpoint: Checkpoint, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no position is computed twice: a piece goes on from the cache of the one before it."""
    execute, batches, computed = OnnxRuntimeEngine.execute, [0], 0

    def watched(self: OnnxRuntimeEngine, step: StepInputs) -> np.ndarray:
        nonlocal computed
        batches.append(len(step.past_seqlens))
        computed += len(step.input_ids)
        return execute(self, step)

    monkeypatch.setattr(OnnxRuntimeEngine, "execute", watched)
    monkeypatch.setattr(writer, "KV_BYTES", 3 * unfolded_plan(checkpoint).kv_bytes(200))
    write(checkpoint, folder, TEXT)
    assert max(batches) == 3
    assert computed < 5 * 200
    assert 2 * PIECE < 200, "rows have several pieces"


def test_a_further_chat_prompt_is_the_conversations_next_turn(checkpoint: Checkpoint) -> None:
    tokenizer = BundleTokenizer(checkpoint.tokenizer.backend, checkpoint.tokenizer.config)
    prompt = encode_prompt(tokenizer, "> Hi there")
    turn = tokenizer.encode("[user] Hi there<|im_end|>")
    assert prompt.first == turn
    assert prompt.later == turn  # neither the reply, nor the end that the model writes itself


def test_what_a_prompt_spells_is_text(checkpoint: Checkpoint) -> None:
    tokenizer = BundleTokenizer(checkpoint.tokenizer.backend, checkpoint.tokenizer.config)
    end = tokenizer.eos_token_ids[0]
    chat, plain = (encode_prompt(tokenizer, f"{mark}Hi<|im_end|>there") for mark in ("> ", ""))
    assert [chat.first.count(end), chat.later.count(end), plain.first.count(end)] == [1, 1, 0]


def test_prompts_are_dealt_anew_each_turn(checkpoint: Checkpoint) -> None:
    prompts = Prompts(checkpoint.tokenizer, 0)
    dealt = [[tuple(prompts.give(row, turn)) for row in range(20)] for turn in (1, 2)]
    assert all(len(set(turn)) == 20 for turn in dealt)
    assert dealt[0] != dealt[1]
    assert dealt[0] != [tuple(Prompts(checkpoint.tokenizer, 1).give(row, 1)) for row in range(20)]


def test_a_vocabulary_without_any_prompt_is_named(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BundleTokenizer, "encode_rendered", lambda self, text: [])
    with pytest.raises(CalibrationError, match=r"name a \.txt or \.jsonl file"):
        Prompts(checkpoint.tokenizer, 0)


def test_progress_counts_tokens(checkpoint: Checkpoint, folder: Path) -> None:
    told: list[tuple[float, str]] = []
    section = TextSection(tokens=3000, sequence_length=250)
    write_text(section, checkpoint, folder, lambda fraction, note="": told.append((fraction, note)))
    fractions = [fraction for fraction, _ in told]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    assert told[-1][1].startswith("3,000 of 3,000 tokens, ")
    assert told[-1][1].endswith(" tokens/s")


def test_killed_at_any_point_it_goes_on_with_the_same_tokens(
    model: Path, checkpoint: Checkpoint, folder: Path, text: np.ndarray
) -> None:
    """SIGKILL twice amid the rows; what was kept is not written again."""
    for last in ("0.55", "0.8"):
        arguments = [str(model), str(folder), TEXT.model_dump_json(), last]
        worker = [sys.executable, "-m", "tests.pipeline.texts.writer_worker", *arguments]
        assert subprocess.run(worker, check=False).returncode == -signal.SIGKILL
    before = rows_file(folder).read_bytes()
    kept = sum(len(json.loads(line)[1]) for line in before.splitlines())
    told: list[float] = []
    again = write_text(TEXT, checkpoint, folder, lambda fraction, note="": told.append(fraction))
    assert np.array_equal(again, text)
    assert 0 < kept / 1000 == told[0]
    assert rows_file(folder).read_bytes().startswith(before)


def test_a_reply_that_goes_on_and_on_is_ended_also_where_it_was_interrupted(
    checkpoint: Checkpoint, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next prompt follows an end that the model did not write; a cut at any line gives the same."""
    monkeypatch.setattr(writer, "LONGEST_REPLY", PIECE)
    written = write(checkpoint, folder, TEXT)
    prompts = Prompts(checkpoint.tokenizer, TEXT.seed)
    for index, row in enumerate(written.tolist()):
        first, following = len(prompts.give(index, 0)), prompts.give(index, 1)
        end = next(place for place in range(first, len(row)) if row[place] in prompts.ends)
        assert end - first < 2 * PIECE
        assert row[end + 1 : end + 1 + len(following)] == following[: 200 - end - 1]
    lines = rows_file(folder).read_text().splitlines(keepends=True)
    ended = [place for place, line in enumerate(lines) if json.loads(line)[1] == [prompts.ends[0]]]
    assert ended, "no reply was ended for it"
    for kept in (ended[0], ended[0] + 1):
        rows_file(folder).write_text("".join(lines[:kept]))
        assert np.array_equal(write(checkpoint, folder, TEXT), written)


def test_half_a_line_is_written_again(checkpoint: Checkpoint, folder: Path, text: np.ndarray) -> None:
    write(checkpoint, folder, TEXT)
    lines = rows_file(folder).read_text().splitlines(keepends=True)
    rows_file(folder).write_text("".join(lines[:4]) + lines[4][:-3])
    assert np.array_equal(write(checkpoint, folder, TEXT), text)
    assert sorted(rows_file(folder).read_text().splitlines(keepends=True)) == sorted(lines)


def test_a_written_text_needs_no_engine(
    checkpoint: Checkpoint, folder: Path, text: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(checkpoint, folder, TEXT)
    monkeypatch.setattr(writer, "load_writer_engine", lambda *_: pytest.fail("it was loaded"))
    assert np.array_equal(write(checkpoint, folder, TEXT), text)


def test_an_engine_is_whole_or_not_there(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill while it is made leaves none; one that is there is not made again; another model's goes."""
    (tmp_path / "of-another-model").mkdir()
    section = TextSection(tokens=2, sequence_length=2)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(EngineConfig, "save", interrupt)
        write(checkpoint, tmp_path, section)
    (own,) = tmp_path.iterdir()
    assert own.name == writer_key(checkpoint)
    assert not (own / "engine").exists()
    write(checkpoint, tmp_path, TextSection(tokens=40, sequence_length=40))
    assert sorted(path.name for path in (own / "engine").iterdir()) == [
        *("engine.json", "model.onnx", "model.onnx.data"),
    ]
    assert not (own / "engine.aside").exists()
    monkeypatch.setattr(writer_engine, "_build", interrupt)
    assert write(checkpoint, tmp_path, TextSection(tokens=40, sequence_length=20)).shape == (2, 20)


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt

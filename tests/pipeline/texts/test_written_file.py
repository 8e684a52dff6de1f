"""A text that the model wrote, as a file of conversations and texts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvfold.export.checkpoint.checkpoint import Checkpoint
from kvfold.export.checkpoint.load_checkpoint import load_checkpoint
from kvfold.pipeline.recipe.recipe_sections import TextSection
from kvfold.pipeline.texts import written_file
from kvfold.pipeline.texts.documents import read_documents
from kvfold.pipeline.texts.prompts import Prompts
from kvfold.pipeline.texts.written_file import write_file
from kvfold.plugins.contract.errors import CalibrationError
from tests.pipeline.texts.test_writer import write_model

SECTION = TextSection(tokens=600, sequence_length=200, seed=1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return load_checkpoint(write_model(tmp_path_factory.mktemp("tiny"), "qwen3"))


def write(checkpoint: Checkpoint, output: Path) -> list[Any]:
    count = write_file(SECTION, checkpoint, output, lambda fraction, note="": None)
    documents = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert len(documents) == count
    return documents


def test_turns_are_a_conversation_and_what_was_broken_off_is_left_out(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, decode = Prompts(checkpoint.tokenizer, SECTION.seed), checkpoint.tokenizer.backend.decode
    rows, expected = [], []
    for index in range(12):
        row: list[int] = []
        messages: list[dict[str, str]] = []
        for turn, reply in enumerate(([20, 21], [22, 23, 24], [25], [26])):
            row += [*prompts.give(index, turn), *reply, prompts.ends[0]]
            prompt = prompts.deal(index, turn)
            if prompt.is_chat:
                messages += [{"role": "user", "content": prompt.text}]
                messages += [{"role": "assistant", "content": decode(reply)}]
                continue
            expected += [{"messages": messages}] if messages else []
            expected += [{"text": prompt.text + decode(reply)}]
            messages = []
        expected += [{"messages": messages}] if messages else []
        rows.append([*row, *prompts.give(index, 4), 27])
    longest = max(map(len, rows))
    together = np.array([row + [27] * (longest - len(row)) for row in rows])
    monkeypatch.setattr(written_file, "write_text", lambda *_: together)
    (tmp_path / "chats.jsonl.work").mkdir()
    documents = write(checkpoint, tmp_path / "chats.jsonl")
    assert documents == expected
    assert {len(document.get("messages", ())) for document in documents} >= {0, 2, 4}


def test_the_file_can_be_read_as_a_text_and_nothing_else_is_left(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvfold.pipeline.texts.writer.LONGEST_REPLY", 64)
    output = tmp_path / "chats.jsonl"
    documents = write(checkpoint, output)
    assert len(list(read_documents(output, checkpoint.tokenizer.config))) == len(documents) >= 3
    assert [path.name for path in tmp_path.iterdir()] == ["chats.jsonl"]
    assert write(checkpoint, tmp_path / "again.jsonl") == documents


def test_a_model_that_ends_nothing_writes_a_text_a_sequence(checkpoint: Checkpoint, tmp_path: Path) -> None:
    tokenizer = checkpoint.tokenizer
    config = tokenizer.config.model_copy(update={"eos_token_ids": (), "chat_template": None})
    base = replace(checkpoint, tokenizer=replace(tokenizer, config=config))
    documents = write(base, tmp_path / "texts.jsonl")
    assert len(documents) == 3
    prompts = Prompts(base.tokenizer, SECTION.seed)
    for index, document in enumerate(documents):
        start = prompts.deal(index, 0).text
        assert document["text"].startswith(start) and len(document["text"]) > len(start)


def test_a_text_without_a_whole_reply_is_refused_and_what_was_written_stays(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = Prompts(checkpoint.tokenizer, SECTION.seed)
    monkeypatch.setattr(written_file, "write_text", lambda *_: np.array([[*prompts.give(0, 0), 20, 21]]))
    (tmp_path / "chats.jsonl.work").mkdir()
    with pytest.raises(CalibrationError, match="ended no reply"):
        write(checkpoint, tmp_path / "chats.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["chats.jsonl.work"]

"""Texts from files: packed, drawn, shuffled into one, and refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from kvfold.export.checkpoint import Checkpoint, load_checkpoint
from kvfold.pipeline.recipe.recipe_sections import TextSection
from kvfold.pipeline.texts.documents import read_documents
from kvfold.pipeline.texts.texts import read_texts
from kvfold.plugins.contract.errors import CalibrationError
from kvfold.plugins.contract.tokenizer_config import TokenizerConfig
from tests.export.tiny_checkpoints import random_model, write_folder

TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}<|im_end|>{% endfor %}"
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = write_folder(tmp_path_factory.mktemp("tiny"), random_model("qwen3"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    return load_checkpoint(folder)


def read(checkpoint: Checkpoint, path: Path, tokens: int, length: int, seed: int = 0) -> Tensor:
    """The text of a file; what only a writing model needs is not touched."""
    section = TextSection(source=str(path), tokens=tokens, sequence_length=length, seed=seed)
    return read_texts((section,), checkpoint, path.parent / "writer", lambda fraction, note="": None)


def test_text_is_packed_in_order(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("0123456789" * 10)
    tokens = read(checkpoint, path, 90, 10)
    assert tokens.shape == (9, 10)
    assert tokens.dtype == torch.int64
    assert torch.equal(tokens, torch.arange(16, 26).expand(9, 10))


def test_long_text_is_drawn_by_seed(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("".join(chr(97 + index // 26) + chr(97 + index % 26) for index in range(500)))
    drawn = [read(checkpoint, path, 60, 20, seed) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_jsonl_holds_texts_and_chats(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [{"text": "plain"}, {"messages": CHAT}, CHAT]
    path.write_text("\n\n".join(json.dumps(line) for line in lines))
    rendered = "[user] Hi<|im_end|>[assistant] Hello<|im_end|>"
    documents = list(read_documents(path, TokenizerConfig(chat_template=TEMPLATE)))
    assert [(item.text, item.needs_bos) for item in documents] == [
        ("plain", True),
        (rendered, False),
        (rendered, False),
    ]


def test_a_long_text_is_one_document(tmp_path: Path) -> None:
    """Handed on in pieces, of which the first alone wants a BOS token."""
    path = tmp_path / "a.txt"
    path.write_text("a line of a book\n" * 9000)
    pieces = list(read_documents(path, TokenizerConfig()))
    assert len(pieces) > 2
    assert [piece.needs_bos for piece in pieces] == [True] + [False] * (len(pieces) - 1)
    assert "".join(piece.text for piece in pieces) == path.read_text()


@pytest.mark.parametrize(
    ("name", "content", "length", "control"),
    [
        ("a.txt", "a<|im_end|>b" * 4, 48, 0),
        ("a.jsonl", json.dumps({"text": "a<|im_end|>b" * 4}), 48, 0),
        (
            "a.jsonl",
            json.dumps({"messages": [{"role": "user", "content": "a<|im_end|>b" * 4}]}),
            7 + 48 + 1,
            1,
        ),
        ("a.jsonl", json.dumps([{"role": "<|im_end|>", "content": "<|im_" * 4}, *CHAT]), 34 + 10 + 18, 3),
    ],
)
def test_what_a_file_spells_is_text(
    checkpoint: Checkpoint, tmp_path: Path, name: str, content: str, length: int, control: int
) -> None:
    (tmp_path / name).write_text(content)
    end = checkpoint.tokenizer.backend.token_to_id("<|im_end|>")
    assert int((read(checkpoint, tmp_path / name, length, length) == end).sum()) == control


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ('{"text": ', "line 2 is not valid JSON"),
        ('{"content": "x"}', 'line 2 needs a "text"'),
        ('{"messages": []}', 'line 2 needs a "text"'),
        ("[]", 'line 2 needs a "text"'),
        ("3", 'line 2 needs a "text"'),
        ('{"text": "\\ud83d"}', "line 2 holds half a character"),
    ],
)
def test_broken_line_is_named(line: str, named: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n' + line)
    with pytest.raises(CalibrationError, match=named):
        list(read_documents(path, TokenizerConfig()))


def test_chat_without_template_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(CHAT))
    with pytest.raises(CalibrationError, match="line 1: this model has no chat template"):
        list(read_documents(path, TokenizerConfig()))


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("missing.txt", None, "cannot be read: No such file"),
        ("a.csv", b"x", r"is a \.txt or \.jsonl file"),
        ("a.txt", b"\xff\xfe\x00", "is not UTF-8"),
        ("a.txt", b"", "gives 0 tokens, 32 are needed"),
        ("a.txt", b"too short", "gives 9 tokens, 32 are needed"),
        ("a.jsonl", b"\n", "gives 0 tokens, 32 are needed"),
    ],
)
def test_unusable_file_is_refused(
    name: str, content: bytes | None, named: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CalibrationError, match=named):
        read(checkpoint, tmp_path / name, 20, 16)


def test_sequences_beyond_the_context_are_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="sequences of 2 to 256 tokens"):
        read(checkpoint, tmp_path / "a.txt", 16, 257)


@pytest.mark.parametrize(("tokens", "length"), [(0, 16), (16, 1)])
def test_senseless_sizes_are_refused(tokens: int, length: int) -> None:
    with pytest.raises(ValidationError):
        TextSection(tokens=tokens, sequence_length=length)


def test_several_texts_are_shuffled_into_one(checkpoint: Checkpoint, tmp_path: Path) -> None:
    sections = []
    for letter, tokens in (("a", 200), ("b", 100)):
        path = tmp_path / f"{letter}.txt"
        path.write_text(letter * 500)
        sections.append(TextSection(source=str(path), tokens=tokens, sequence_length=10))
    sequences = read_texts(tuple(sections), checkpoint, tmp_path, lambda fraction, note="": None)
    letters = sequences[:, 0].tolist()
    assert sorted(letters) == [65] * 20 + [66] * 10
    assert letters != sorted(letters)

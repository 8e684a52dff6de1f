"""Calibration tokens: packed from files, sampled from the model, and refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from kvfold.export.calibration import calibration_tokens, generate
from kvfold.export.calibration.documents import read_documents
from kvfold.export.calibration.generate import TEMPERATURE, SeedPrompt, Writer, sample
from kvfold.export.calibration.step_attention import StepAttention
from kvfold.export.checkpoint import Checkpoint, load_checkpoint
from kvfold.export.model.decoder import Decoder
from kvfold.plugins.contract.errors import CalibrationError
from kvfold.plugins.contract.plan_presets import Preset, build_plan
from kvfold.plugins.contract.tokenizer_config import TokenizerConfig
from tests.export.tiny_checkpoints import random_model, write_folder
from tests.tiny_model import dense_logits

TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}<|im_end|>{% endfor %}"
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = write_folder(tmp_path_factory.mktemp("tiny"), random_model("qwen3"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    return load_checkpoint(folder)


def test_text_is_packed_in_order(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("0123456789" * 10)
    tokens = calibration_tokens(path, checkpoint, 90, 10, seed=0)
    assert tokens.shape == (9, 10)
    assert tokens.dtype == torch.int64
    assert torch.equal(tokens, torch.arange(16, 26).expand(9, 10))


def test_long_text_is_drawn_by_seed(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("".join(chr(97 + index // 26) + chr(97 + index % 26) for index in range(500)))
    drawn = [calibration_tokens(path, checkpoint, 60, 20, seed) for seed in (1, 1, 2)]
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
        calibration_tokens(tmp_path / name, checkpoint, 20, 16, seed=0)


@pytest.mark.parametrize(("tokens", "length"), [(0, 16), (16, 1), (16, 257)])
def test_senseless_sizes_are_refused(tokens: int, length: int, checkpoint: Checkpoint) -> None:
    with pytest.raises(CalibrationError, match="2 to 256 tokens"):
        calibration_tokens("generate", checkpoint, tokens, length, seed=0)


def test_generated_text_starts_with_prompts_and_follows_the_seed(checkpoint: Checkpoint) -> None:
    first, again, other = (calibration_tokens("generate", checkpoint, 1000, 100, seed) for seed in (1, 1, 2))
    assert first.shape == (10, 100)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert int(first.max()) < 97


def test_groups_are_bounded_by_their_caches(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = generate._fast_decoder(checkpoint)
    row = StepAttention.row_bytes(decoder, 20)
    mixer = StepAttention(decoder, rows=3, length=20)
    assert 3 * row == mixer.keys.nbytes + mixer.values.nbytes
    monkeypatch.setattr(generate, "CACHE_BYTES", 3 * row)
    assert generate._group_sizes(7, row) == [3, 2, 2]
    assert generate._group_sizes(2, 4 * row) == [1, 1]
    assert calibration_tokens("generate", checkpoint, 140, 20, seed=0).shape == (7, 20)


def test_a_row_goes_on_with_the_next_prompt_in_the_same_context() -> None:
    writer = Writer(iter([SeedPrompt([1, 2], [9]), SeedPrompt([9], [3, 4])]), ends={7})
    assert [writer.choose(token) for token in (0, 0, 5, 7, 0, 0, 6)] == [1, 2, 5, 7, 3, 4, 6]


def test_a_further_chat_prompt_is_the_conversations_next_turn(checkpoint: Checkpoint) -> None:
    prompt = generate._seed_prompt(checkpoint, "> Hi there")
    turn = checkpoint.tokenizer.encode("[user] Hi there<|im_end|>")
    assert prompt.first == turn
    assert prompt.later == turn  # neither the reply, nor the end that the model writes itself


def test_step_attention_equals_whole_sequences(checkpoint: Checkpoint) -> None:
    plan = build_plan(Preset(preset="identity"), checkpoint.config.attention_shape)
    decoder = Decoder.from_weights(checkpoint.config, plan, checkpoint.weights)
    input_ids = torch.randint(0, 97, (3, 20), generator=torch.Generator().manual_seed(0))
    mixer = StepAttention(decoder, rows=3, length=20)
    with torch.inference_mode():
        steps = [decoder(input_ids[:, step, None], mixer) for step in range(20)]
        torch.testing.assert_close(
            torch.cat(steps, dim=1), dense_logits(decoder, input_ids), atol=1e-4, rtol=1e-4
        )


def test_samples_follow_the_distribution() -> None:
    chances = torch.tensor([0.1, 0.2, 0.0, 0.7])
    logits = (chances.log() * TEMPERATURE).expand(100_000, 4)
    drawn = sample(logits, torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.bincount(minlength=4) / 100_000, chances, atol=0.01, rtol=0)

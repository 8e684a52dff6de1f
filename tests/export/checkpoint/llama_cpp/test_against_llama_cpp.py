"""Vocabularies, quantised tensors and logits of GGUF files, beside what llama.cpp makes of the same files."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from tokenizers import Tokenizer

from kvfold.export.checkpoint.gguf_header import read_gguf_header
from kvfold.export.checkpoint.gguf_tokenizer import tokenizer_from_gguf
from kvfold.export.checkpoint.gguf_vocabulary.pre_tokenizers import PRE_TOKENIZERS
from kvfold.export.checkpoint.load_checkpoint import load_checkpoint
from kvfold.export.model.decoder import Decoder
from kvfold.plugins.contract.fold_plan import FoldPlan
from tests.export.checkpoint.llama_cpp.libllama import LibLlama
from tests.export.tiny_checkpoints import random_model
from tests.export.tiny_gguf import write_gguf
from tests.tiny_model import dense_logits

VOCABULARIES = (
    *("command-r", "deepseek-coder", "deepseek-llm", "falcon", "gemma-4", "gpt-2", "llama-bpe", "llama-spm"),
    *("mpt", "phi-3", "qwen2", "qwen35", "refact", "starcoder"),
)
SPLIT = "\n__ggml_vocab_test__\n"
TEXTS_PER_VOCABULARY = 1000
RANGES = (
    *[(0x20, 0x7F)] * 8,
    *((0xA0, 0x180), (0x300, 0x36F), (0x370, 0x400), (0x400, 0x500), (0x590, 0x600), (0x600, 0x700)),
    *((0x900, 0x980), (0xE00, 0xE80), (0x2000, 0x2070), (0x3000, 0x3100), (0x4E00, 0x9FFF)),
    *((0xAC00, 0xD7A3), (0xFF00, 0xFF60), (0x1D400, 0x1D7FF), (0x1F300, 0x1F650)),
)
PIECES = (
    *(
        "'s",
        "'LL",
        " don't",
        "12345",
        "007",
        "3.14",
        "<0x0A>",
        "<s>",
        "print(",
        " the",
        "Hello",
        "HTTPServer",
    ),
    *("straße", "Привет", "你好世界", "テキスト", "안녕하세요", "مرحبا", "नमस्ते"),
)
KINDS = (
    *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M"),
    *("Q5_K_S", "Q5_K_M", "Q6_K", "IQ3_S", "IQ3_M", "IQ4_NL", "IQ4_XS", "F16", "BF16", "TQ1_0", "TQ2_0"),
)
EIGHT: dict[str, Any] = {"head_dim": 8}  # qwen2, olmo2 and granite files have hidden_size / heads
LONG = {
    "type": "longrope",
    "short_factor": [1.0, 1.1, 1.3, 1.5, 1.7, 2.0, 2.5, 3.0],
    "long_factor": [1.0, 1.5, 2.5, 3.5, 5.0, 7.0, 9.0, 12.0],
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
# llama.cpp rounds GELU to float16, so that gemma's logits differ by some of its steps.
GEMMA = 0.02
MODELS: tuple[tuple[str, dict[str, Any], float], ...] = (
    ("llama", {}, 1e-3),
    ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, 1e-3),
    ("llama-biased", {}, 1e-3),
    ("qwen2", EIGHT, 1e-3),
    ("qwen2", EIGHT | {"rope_scaling": YARN}, 1e-3),
    ("qwen3", {}, 1e-3),
    ("olmo2", EIGHT, 1e-3),
    ("granite", EIGHT, 1e-3),
    ("smollm3", {"no_rope_layer_interval": 4}, 1e-3),
    ("phi3", EIGHT, 1e-3),
    ("phi3", EIGHT | {"partial_rotary_factor": 0.5}, 1e-3),
    ("phi3", {"hidden_size": 64, "rope_scaling": LONG, "original_max_position_embeddings": 128}, 1e-3),
    ("phi3", {"hidden_size": 64, "rope_scaling": LONG, "original_max_position_embeddings": 256}, 1e-3),
    ("gemma2", {"query_pre_attn_scalar": 16, "tie_word_embeddings": True}, GEMMA),
    ("gemma3_text", {"query_pre_attn_scalar": 16, "tie_word_embeddings": True}, GEMMA),
)


def read(path: Path) -> Tokenizer:
    metadata = read_gguf_header(path).metadata
    return tokenizer_from_gguf(path, metadata, len(metadata["tokenizer.ggml.tokens"]), None).backend


@pytest.mark.parametrize("name", VOCABULARIES)
def test_vectors_of_llama_cpp(name: str, llama_cpp: Path) -> None:
    path = llama_cpp / "models" / f"ggml-vocab-{name}.gguf"
    tokenizer = read(path)
    texts = Path(f"{path}.inp").read_bytes().decode().split(SPLIT)
    lines = Path(f"{path}.out").read_text().split("\n")
    assert len(texts) > 40
    for text, line in zip(texts, lines, strict=False):
        assert tokenizer.encode(text, add_special_tokens=False).ids == [int(token) for token in line.split()]


@pytest.mark.parametrize("name", [*VOCABULARIES, "baichuan"])
def test_random_texts(name: str, llama_cpp: Path, libllama: LibLlama) -> None:
    compare(llama_cpp / "models" / f"ggml-vocab-{name}.gguf", libllama)


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_random_texts_of_each_pre_tokenizer(
    pre: str, llama_cpp: Path, libllama: LibLlama, tmp_path: Path
) -> None:
    """One vocabulary under every name."""
    content = (llama_cpp / "models" / "ggml-vocab-gpt-2.gguf").read_bytes()
    key = b"tokenizer.ggml.pre"
    at = content.index(key) + len(key) + 4
    (length,) = struct.unpack_from("<Q", content, at)
    path = tmp_path / "model.gguf"
    path.write_bytes(content[:at] + struct.pack("<Q", len(pre)) + pre.encode() + content[at + 8 + length :])
    compare(path, libllama)


def compare(path: Path, libllama: LibLlama) -> None:
    """Tokens of random texts, and the text of these tokens."""
    metadata = read_gguf_header(path).metadata
    kinds, tokens = metadata["tokenizer.ggml.token_type"], metadata["tokenizer.ggml.tokens"]
    # What phi-3's control tokens take in is more here: all white space, as in Hugging Face's tokenizer.
    added = [text for text, kind in zip(tokens, kinds, strict=True) if kind in (2, 3, 4)]
    added = [] if "phi3" in str(metadata.get("general.name")).lower() else added[:200]
    tokenizer, chance = read(path), random.Random(0)
    with libllama.model(path, vocab_only=True) as model:
        sample = chance.sample(range(len(tokens)), 2000)
        pieces = [libllama.decode(model, [token]).decode(errors="ignore") for token in sample]
        for _ in range(TEXTS_PER_VOCABULARY):
            text = random_text(chance, pieces, added)
            expected = libllama.encode(model, text)
            assert tokenizer.encode(text, add_special_tokens=False).ids == expected, text
            said = libllama.decode(model, expected)
            prefixed = metadata["tokenizer.ggml.model"] == "llama" and said.startswith(b" ")
            assert tokenizer.decode(expected, skip_special_tokens=False) == said[prefixed:].decode(
                errors="replace"
            )


def random_text(chance: random.Random, pieces: list[str], added: list[str]) -> str:
    return "".join(random_part(chance, pieces, added) for _ in range(chance.randint(1, 12)))


def random_part(chance: random.Random, pieces: list[str], added: list[str]) -> str:
    """Characters of one script, a run of white space or of one character, a token's text, or a phrase."""
    match chance.randrange(6):
        case 0:
            first, last = chance.choice(RANGES)
            return "".join(chr(chance.randrange(first, last)) for _ in range(chance.randint(1, 6)))
        case 1:
            spaces = (" ", "\n", "\t", "\r\n", "  ", "\u00a0", "\u3000", "\u2003", "▁")
            return chance.choice(spaces) * chance.choice((1, 1, 2, 3, 5, 8, 17, 33))
        case 2:
            return chance.choice("ab=-#*._/~1 0x'\"<>é中") * chance.randint(1, 40)
        case 3 if added:
            return chance.choice(added)
        case 4:
            return chance.choice(PIECES)
    return chance.choice(pieces)


@pytest.mark.parametrize("kind", KINDS)
def test_quantised_files(kind: str, libllama: LibLlama, tmp_path: Path) -> None:
    """Every tensor of a file of llama.cpp's quantiser has the values that llama.cpp itself reads there."""
    model = random_model("llama", hidden_size=256, intermediate_size=512, num_attention_heads=8, head_dim=32)
    plain = write_gguf(tmp_path / "plain.gguf", model, GGMLQuantizationType.F32)
    quantised, again = tmp_path / "quantised.gguf", tmp_path / "again.gguf"
    libllama.quantize(plain, quantised, f"MOSTLY_{kind}")
    libllama.quantize(quantised, again, "ALL_F32")
    ours, theirs = load_checkpoint(quantised).weights, load_checkpoint(again).weights
    assert any(tensor.kind for tensor in read_gguf_header(quantised).tensors.values())
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name


@pytest.mark.parametrize(("name", "changes", "tolerance"), MODELS)
def test_logits(
    name: str, changes: dict[str, Any], tolerance: float, libllama: LibLlama, tmp_path: Path
) -> None:
    model = random_model(name, **({"num_hidden_layers": 6} | changes))
    path = write_gguf(tmp_path / "model.gguf", model, GGMLQuantizationType.F32)
    checkpoint = load_checkpoint(path)
    ids = torch.randint(0, 97, (1, 200), generator=torch.Generator().manual_seed(1))
    plan = FoldPlan.of(checkpoint.config.attention_shape)
    decoder = Decoder.from_weights(checkpoint.config, plan, checkpoint.weights)
    with torch.inference_mode():
        ours = dense_logits(decoder, ids)[0].numpy()
    assert np.abs(ours - libllama.logits(path, ids[0].tolist())).max() <= tolerance

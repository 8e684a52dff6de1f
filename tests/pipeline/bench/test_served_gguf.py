"""The GGUF that llama.cpp's server gets: the original's weights, and its tokenizer token for token."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from kvfold.export.checkpoint.checkpoint_tokenizer import CheckpointTokenizer
from kvfold.export.checkpoint.gguf_vocabulary.pre_tokenizers import LLAMA3, PRE_TOKENIZERS, QWEN2
from kvfold.export.checkpoint.load_checkpoint import load_checkpoint
from kvfold.pipeline.bench.models.gguf_vocabulary import add_vocabulary, pre_tokenizer_name
from kvfold.pipeline.bench.prepared_models import PreparedModels
from kvfold.plugins.contract.errors import UnsupportedModelError
from kvfold.plugins.contract.tokenizer_config import TokenizerConfig
from tests.export.tiny_checkpoints import random_model, tiny_tokenizer, write_folder
from tests.pipeline.tiny_bundles import TEMPLATE

TEXTS = ("cab tab 12 abab", "  It's <|im_end|> here, isn't it?", "x<|im_end|>ab")


def test_it_reads_text_as_the_original_does(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", random_model("llama", intermediate_size=64))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": TEMPLATE, "eos_token": "<|im_end|>", "bos_token": "~"})
    )
    original = load_checkpoint(folder)
    models_of = PreparedModels(tmp_path / "work", original)
    path = models_of.served_gguf()
    written = path.stat().st_mtime_ns
    again = load_checkpoint(path)
    for text in TEXTS:
        expected = original.tokenizer.backend.encode(text, add_special_tokens=False).ids
        assert again.tokenizer.backend.encode(text, add_special_tokens=False).ids == expected
    ours, theirs = original.tokenizer.config, again.tokenizer.config
    assert theirs.chat_template == ours.chat_template == TEMPLATE
    assert theirs.bos_token_id == ours.bos_token_id == 94
    assert theirs.eos_token_ids == (96,), "what ends a turn by its name"
    assert theirs.add_bos_token == ours.add_bos_token
    assert again.config.vocab_size == original.config.vocab_size
    assert models_of.served_gguf().stat().st_mtime_ns == written, "it was converted twice"


def with_splitter(splitter: pre_tokenizers.PreTokenizer, ignore_merges: bool = False) -> CheckpointTokenizer:
    vocab = tiny_tokenizer().get_vocab(with_added_tokens=False)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("a", "b")], ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = splitter
    return CheckpointTokenizer(json=tokenizer.to_str(), config=TokenizerConfig())


def published(pattern: str) -> pre_tokenizers.PreTokenizer:
    """As Hugging Face's files split by a pattern."""
    from tokenizers import Regex

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level])


def test_a_pre_tokenizer_is_known_by_what_it_makes_of_a_text() -> None:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    assert pre_tokenizer_name(with_splitter(byte_level)) == "gpt-2"
    assert pre_tokenizer_name(with_splitter(digits)) == "smollm"
    assert pre_tokenizer_name(with_splitter(published(QWEN2))) == "qwen2"
    assert pre_tokenizer_name(with_splitter(published(LLAMA3), ignore_merges=True)) == "llama-bpe"
    assert pre_tokenizer_name(with_splitter(published(LLAMA3))) == "smaug-bpe"


def test_different_pre_tokenizers_are_told_apart() -> None:
    """Those that split or merge differently have different names by the probe."""
    kinds = {(known.patterns, known.ignore_merges) for known in PRE_TOKENIZERS.values()}
    names = {
        pre_tokenizer_name(with_splitter(known.splitter(), known.ignore_merges))
        for known in PRE_TOKENIZERS.values()
    }
    assert len(names) == len(kinds)


def test_what_llama_cpp_does_not_know_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="no pre-tokenizer that splits"):
        pre_tokenizer_name(with_splitter(pre_tokenizers.Whitespace()))
    words = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    other = replace(with_splitter(pre_tokenizers.Whitespace()), json=words.to_str())
    with pytest.raises(UnsupportedModelError, match="type WordLevel"):
        add_vocabulary(None, other, 1)

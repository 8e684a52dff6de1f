"""Vocabularies of type gpt2: merges of the bytes of words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from kvfold.export.checkpoint.gguf_vocabulary.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer
from kvfold.export.checkpoint.gguf_vocabulary.tokens import ADVICE, GgufTokens, read_tokens
from kvfold.plugins.contract.errors import CheckpointError, UnsupportedModelError


def build_byte_level(path: Path, metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a file's metadata; raises as `tokenizer_from_gguf` does."""
    pre_tokenizer = _pre_tokenizer(path, metadata)
    tokens = read_tokens(path, metadata, needed=("merges",))
    tokenizer = Tokenizer(merging_model(path, metadata, tokens, ignore_merges=pre_tokenizer.ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizer.splitter()
    tokenizer.decoder = _decoder(tokens)
    tokens.add_to(tokenizer)
    return tokenizer


def _decoder(tokens: GgufTokens) -> decoders.Decoder:
    """Bytes as a text; a token that stands for itself (DeepSeek's ö) is none, though spelled like one."""
    spelling = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = set(spelling.alphabet())
    itself = [text for text in tokens.recognised if not text.isascii() and alphabet.issuperset(text)]
    spelled = [decoders.Replace(text, spelling.pre_tokenize_str(text)[0][0]) for text in itself]
    return decoders.Sequence([*spelled, decoders.ByteLevel()]) if spelled else decoders.ByteLevel()


def merging_model(path: Path, metadata: Mapping[str, Any], tokens: GgufTokens, **options: Any) -> models.BPE:
    """The model that applies the file's own list of merges.

    Raises:
        CheckpointError: a merge has parts or a result that are no tokens.
    """
    try:
        merges = [_split_merge(merge) for merge in metadata["tokenizer.ggml.merges"]]
        return models.BPE(vocab=tokens.ids, merges=merges, **options)
    except Exception as error:  # tokenizers raises bare Exception for a merge outside of the vocabulary
        raise CheckpointError(f"{path}: the vocabulary is inconsistent: {error}; {ADVICE}") from error


def _split_merge(merge: str) -> tuple[str, str]:
    """The two parts of a merge; its separator is the first space after the first character."""
    at = merge.index(" ", 1)
    return merge[:at], merge[at + 1 :]


def _pre_tokenizer(path: Path, metadata: Mapping[str, Any]) -> PreTokenizer:
    name = metadata.get("tokenizer.ggml.pre", "default")
    if name not in PRE_TOKENIZERS:
        raise UnsupportedModelError(
            f"{path}: pre-tokenizer {name} is not supported; {ADVICE}. Supported are "
            f"{', '.join(sorted(PRE_TOKENIZERS))}"
        )
    return PRE_TOKENIZERS[name]

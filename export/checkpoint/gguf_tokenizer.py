"""The tokenizer of a GGUF file, token for token as llama.cpp applies it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from kvfold.export.checkpoint.checkpoint_tokenizer import (
    CheckpointTokenizer,
    check_vocabulary,
    end_token_ids,
    parse_tokenizer,
    read_chat_template,
    read_text,
)
from kvfold.export.checkpoint.gguf_vocabulary.build_byte_level import build_byte_level
from kvfold.export.checkpoint.gguf_vocabulary.build_sentencepiece import build_gemma4, build_sentencepiece
from kvfold.export.checkpoint.gguf_vocabulary.pre_tokenizers import PRE_TOKENIZERS
from kvfold.export.checkpoint.gguf_vocabulary.tokens import ADVICE
from kvfold.plugins.contract.errors import CheckpointError, UnsupportedModelError
from kvfold.plugins.contract.tokenizer_config import TokenizerConfig

# By `tokenizer.ggml.model`.
BUILDERS: dict[str, Callable[[Path, Mapping[str, Any]], Tokenizer]] = {
    "gpt2": build_byte_level,
    "llama": build_sentencepiece,
    "gemma4": build_gemma4,
}
SPECIAL_TOKENS = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
}
# What a file of type llama need not say.
SENTENCEPIECE = {
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.unknown_token_id": 0,
}


def tokenizer_from_gguf(
    path: Path, metadata: Mapping[str, Any], vocab_size: int, override: Path | None
) -> CheckpointTokenizer:
    """The tokenizer of a GGUF file's metadata, or of a tokenizer.json that overrides it.

    Raises:
        UnsupportedModelError: the vocabulary's type or pre-tokenizer is not known; it is named.
        CheckpointError: the vocabulary is incomplete, or has ids the model lacks; or the chat template does
            not work.
    """
    source = str(override or path)
    text = read_text(override) if override else _build(path, metadata).to_str()
    tokenizer = parse_tokenizer(source, text)
    check_vocabulary(source, tokenizer, vocab_size)
    kind = metadata.get("tokenizer.ggml.model")
    named = {key: value for key, value in metadata.items() if not _names_no_token(key, value, tokenizer)}
    declared = {**SENTENCEPIECE, **named} if kind == "llama" else named
    texts = {
        name: token
        for name, key in SPECIAL_TOKENS.items()
        if key in declared and (token := tokenizer.id_to_token(declared[key])) is not None
    }
    ends = [declared.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    config = TokenizerConfig(
        bos_token_id=declared.get(SPECIAL_TOKENS["bos_token"]),
        add_bos_token=_adds_bos(declared),
        eos_token_ids=end_token_ids(tokenizer, ends),
        chat_template=read_chat_template(str(path), metadata.get("tokenizer.chat_template"), texts),
        special_tokens=texts,
    )
    return CheckpointTokenizer(json=text, config=config)


def _names_no_token(key: str, value: object, tokenizer: Tokenizer) -> bool:
    """A special token's id that the vocabulary lacks, as 4294967295 for none; llama.cpp ignores it too."""
    if not (key.startswith("tokenizer.ggml.") and key.endswith("_token_id")):
        return False
    if isinstance(value, bool) or not isinstance(value, int):
        raise CheckpointError(f"GGUF metadata: {key} must be a token's id, not {value!r:.40}; fetch it again")
    return not 0 <= value < tokenizer.get_vocab_size(with_added_tokens=True)


def _build(path: Path, metadata: Mapping[str, Any]) -> Tokenizer:
    kind = metadata.get("tokenizer.ggml.model")
    if kind not in BUILDERS:
        raise UnsupportedModelError(
            f"{path}: vocabularies of type {kind} are not supported; {ADVICE}. Supported are "
            f"{', '.join(BUILDERS)}"
        )
    return BUILDERS[kind](path, metadata)


def _adds_bos(metadata: Mapping[str, Any]) -> bool:
    """Whether a text begins with BOS: as the file says, else as its type does; gemma4's always."""
    if metadata.get(SPECIAL_TOKENS["bos_token"]) is None:
        return False
    kind = metadata.get("tokenizer.ggml.model")
    known = PRE_TOKENIZERS.get(metadata.get("tokenizer.ggml.pre", "default"))
    default = kind == "llama" or (kind == "gpt2" and known is not None and known.add_bos)
    return kind == "gemma4" or bool(metadata.get("tokenizer.ggml.add_bos_token", default))

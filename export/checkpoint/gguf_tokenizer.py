"""The tokenizer of a GGUF file, token for token as llama.cpp applies it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import TokenType
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from kvfold.export.checkpoint.checkpoint_tokenizer import (
    CheckpointTokenizer,
    check_vocabulary,
    end_token_ids,
    parse_tokenizer,
    read_chat_template,
    read_text,
)
from kvfold.plugins.contract.errors import CheckpointError, UnsupportedModelError
from kvfold.plugins.contract.tokenizer_config import TokenizerConfig

# GPT-2's split, and the two that Llama 3 and Qwen2 made of it; they differ in the digits of a number.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = "'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = rf"(?:{_CONTRACTIONS})|{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
QWEN2 = rf"(?:{_CONTRACTIONS})|{_WORDS}|\p{{N}}|{_REST}"


@dataclass(frozen=True)
class PreTokenizer:
    """What llama.cpp's `src/llama-vocab.cpp` ties to a value of `tokenizer.ggml.pre`.

    Attributes:
        patterns: each splits the pieces that the one before left.
        ignore_merges: a piece that is itself a token is taken whole.
        add_bos: default where the file has no `tokenizer.ggml.add_bos_token`.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False

    def splitter(self) -> pre_tokenizers.PreTokenizer:
        """The same for the tokenizers library."""
        splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in self.patterns]
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([*splits, byte_level])


_GPT2 = PreTokenizer((GPT2,))
_DIGITS_THEN_GPT2 = PreTokenizer((r"\p{N}", GPT2))
_LLAMA3 = PreTokenizer((LLAMA3,), ignore_merges=True, add_bos=True)
_QWEN2 = PreTokenizer((QWEN2,))
PRE_TOKENIZERS = {
    "default": PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    "gpt-2": _GPT2,
    "olmo": _GPT2,
    "smollm": _DIGITS_THEN_GPT2,
    "starcoder": _DIGITS_THEN_GPT2,
    "refact": _DIGITS_THEN_GPT2,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "falcon3": _LLAMA3,
    "smaug-bpe": PreTokenizer((LLAMA3,)),
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
}
ADVICE = "place the model's tokenizer.json next to the GGUF file; it then takes precedence"
SPECIAL_TOKENS = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
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
    texts = {
        name: token
        for name, key in SPECIAL_TOKENS.items()
        if key in metadata and (token := tokenizer.id_to_token(metadata[key])) is not None
    }
    bos = metadata.get(SPECIAL_TOKENS["bos_token"])
    pre_tokenizer = PRE_TOKENIZERS.get(metadata.get("tokenizer.ggml.pre", "default"))
    default_bos = pre_tokenizer is not None and pre_tokenizer.add_bos
    declared = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    config = TokenizerConfig(
        bos_token_id=bos,
        add_bos_token=bos is not None and bool(metadata.get("tokenizer.ggml.add_bos_token", default_bos)),
        eos_token_ids=end_token_ids(tokenizer, declared),
        chat_template=read_chat_template(str(path), metadata.get("tokenizer.chat_template"), texts),
        special_tokens=texts,
    )
    return CheckpointTokenizer(json=text, config=config)


def _build(path: Path, metadata: Mapping[str, Any]) -> Tokenizer:
    pre_tokenizer = _pre_tokenizer(path, metadata)
    missing = [key for key in ("tokens", "token_type", "merges") if f"tokenizer.ggml.{key}" not in metadata]
    if missing:
        raise CheckpointError(f"{path} has no tokenizer.ggml.{missing[0]}; {ADVICE}")
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    if len(set(tokens)) != len(tokens):
        raise CheckpointError(f"{path}: the vocabulary is inconsistent: a token occurs twice; {ADVICE}")
    try:
        merges = [_split_merge(merge) for merge in metadata["tokenizer.ggml.merges"]]
        model = models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=merges,
            ignore_merges=pre_tokenizer.ignore_merges,
        )
    except Exception as error:  # tokenizers raises bare Exception for a merge outside of the vocabulary
        raise CheckpointError(f"{path}: the vocabulary is inconsistent: {error}; {ADVICE}") from error
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer.splitter()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(_added_tokens(tokens, metadata["tokenizer.ggml.token_type"]))
    return tokenizer


def _split_merge(merge: str) -> tuple[str, str]:
    """The two parts of a merge; its separator is the first space after the first character."""
    at = merge.index(" ", 1)
    return merge[:at], merge[at + 1 :]


def _pre_tokenizer(path: Path, metadata: Mapping[str, Any]) -> PreTokenizer:
    kind = metadata.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise UnsupportedModelError(f"{path}: vocabularies of type {kind} are not supported; {ADVICE}")
    name = metadata.get("tokenizer.ggml.pre", "default")
    if name not in PRE_TOKENIZERS:
        raise UnsupportedModelError(f"{path}: pre-tokenizer {name} is not supported; {ADVICE}")
    return PRE_TOKENIZERS[name]


def _added_tokens(tokens: list[str], types: list[int]) -> list[AddedToken]:
    """Tokens that are recognised whole in a text; all but the user-defined ones are special."""
    recognised = (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED)
    return [
        AddedToken(token, special=kind != TokenType.USER_DEFINED, normalized=False)
        for token, kind in zip(tokens, types, strict=True)
        if kind in recognised
    ]

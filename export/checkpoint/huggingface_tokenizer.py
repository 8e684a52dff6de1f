"""The tokenizer of a Hugging Face folder: tokenizer.json as it is, and what other files say of it."""

from __future__ import annotations

from collections.abc import Mapping
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
from kvfold.plugins.contract.errors import CheckpointError
from kvfold.plugins.contract.tokenizer_config import TokenizerConfig

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")


def tokenizer_from_huggingface(
    folder: Path, declared: Mapping[str, Mapping[str, Any]], vocab_size: int
) -> CheckpointTokenizer:
    """The tokenizer of a folder.

    Args:
        folder: holds tokenizer.json.
        declared: contents of config.json, generation_config.json and tokenizer_config.json by name;
            a file that does not exist is empty.
        vocab_size: rows of the model's embedding.

    Raises:
        CheckpointError: tokenizer.json is missing, broken, or has ids the model lacks; or the chat template
            does not work.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing; load the checkpoint's tokenizer with transformers' AutoTokenizer and "
            "save it there with save_pretrained"
        )
    text = read_text(path)
    tokenizer = parse_tokenizer(str(path), text)
    check_vocabulary(str(path), tokenizer, vocab_size)
    raw, model = declared["tokenizer_config.json"], declared["config.json"]
    special_tokens = {name: _token_text(raw[name]) for name in SPECIAL_TOKENS if raw.get(name)}
    bos = _token_id(tokenizer, special_tokens.get("bos_token"), model.get("bos_token_id"))
    eos = [
        *_as_list(declared["generation_config.json"].get("eos_token_id")),
        *_as_list(model.get("eos_token_id")),
        tokenizer.token_to_id(special_tokens.get("eos_token", "")),
    ]
    begins = tokenizer.encode("a").ids[0] if bos is not None else None
    config = TokenizerConfig(
        bos_token_id=bos,
        add_bos_token=bos is not None and bool(raw.get("add_bos_token", begins == bos)),
        eos_token_ids=end_token_ids(tokenizer, eos),
        chat_template=read_chat_template(*_declared_template(folder, raw), special_tokens),
        special_tokens=special_tokens,
    )
    return CheckpointTokenizer(json=text, config=config)


def _token_text(value: str | Mapping[str, str]) -> str:
    """A special token is a text, or in older files an AddedToken object."""
    return value if isinstance(value, str) else value["content"]


def _token_id(tokenizer: Tokenizer, text: str | None, fallback: int | None) -> int | None:
    index: int | None = None if text is None else tokenizer.token_to_id(text)
    if index is None and fallback is not None and tokenizer.id_to_token(fallback) is not None:
        return fallback
    return index


def _as_list(value: int | list[int] | None) -> list[int]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _declared_template(folder: Path, raw: Mapping[str, Any]) -> tuple[str, object]:
    """Where a folder declares its chat template, and what.

    chat_template.jinja (transformers 4.50 and later), or the key in tokenizer_config.json.
    """
    path = folder / "chat_template.jinja"
    if path.is_file():
        return str(path), read_text(path)
    return str(folder / "tokenizer_config.json"), raw.get("chat_template")

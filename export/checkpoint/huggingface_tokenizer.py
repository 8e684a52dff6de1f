"""The tokenizer of a Hugging Face folder: tokenizer.json as it is, and what other files say of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
# Classes of transformers that begin a text with BOS whatever tokenizer.json says, unless told not to.
BEGINNING = ("LlamaTokenizer", "LlamaTokenizerFast", "GemmaTokenizer", "GemmaTokenizerFast")


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
        CheckpointError: tokenizer.json is missing, broken, or has ids the model lacks; a special token is
            declared as something else; or the chat template does not work.
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
    model, generation, raw = (
        declared[name] for name in ("config.json", "generation_config.json", "tokenizer_config.json")
    )
    special_tokens = _special_tokens(folder / "tokenizer_config.json", raw)
    bos = tokenizer.token_to_id(special_tokens.get("bos_token", ""))
    if bos is None:
        named = _token_ids(folder / "config.json", model, "bos_token_id", vocab_size)
        bos = next((index for index in named if tokenizer.id_to_token(index) is not None), None)
    eos = [
        *_token_ids(folder / "generation_config.json", generation, "eos_token_id", vocab_size),
        *_token_ids(folder / "config.json", model, "eos_token_id", vocab_size),
        tokenizer.token_to_id(special_tokens.get("eos_token", "")),
    ]
    begins = raw.get("tokenizer_class") in BEGINNING or tokenizer.encode("a").ids[:1] == [bos]
    said = raw.get("add_bos_token")
    config = TokenizerConfig(
        bos_token_id=bos,
        add_bos_token=bos is not None and bool(begins if said is None else said),
        eos_token_ids=end_token_ids(tokenizer, eos),
        chat_template=read_chat_template(*_declared_template(folder, raw), special_tokens),
        special_tokens=special_tokens,
    )
    return CheckpointTokenizer(json=text, config=config)


def _special_tokens(path: Path, raw: Mapping[str, Any]) -> dict[str, str]:
    """Texts of special tokens: each is declared as a text, or in older files as an AddedToken object."""
    texts: dict[str, str] = {}
    for name, value in ((name, raw[name]) for name in SPECIAL_TOKENS if raw.get(name)):
        text = value.get("content") if isinstance(value, Mapping) else value
        if not isinstance(text, str):
            raise CheckpointError(
                f"{path}: {name} must be a text, or an object with its content, not {value!r:.80}; correct it"
            )
        texts[name] = text
    return texts


def _token_ids(path: Path, config: Mapping[str, Any], key: str, vocab_size: int) -> list[int]:
    """The ids that a config names, one or several; one that no logit stands for, such as -1, is left out."""
    value = config.get(key)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(index, int) and not isinstance(index, bool) for index in ids):
        raise CheckpointError(
            f"{path}: {key} must be a token's id or a list of them, not {value!r:.80}; correct it"
        )
    return [index for index in ids if 0 <= index < vocab_size]


def _declared_template(folder: Path, raw: Mapping[str, Any]) -> tuple[str, object]:
    """Where a folder declares its chat template, and what.

    chat_template.jinja (transformers 4.50 and later), or the key in tokenizer_config.json.
    """
    path = folder / "chat_template.jinja"
    if path.is_file():
        return str(path), read_text(path)
    return str(folder / "tokenizer_config.json"), raw.get("chat_template")

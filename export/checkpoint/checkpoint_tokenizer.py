"""A checkpoint's tokenizer in the bundle's two files: tokenizer.json and tokenizer_config.json."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer

from kvfold.plugins.contract.chat_template import check_chat_template
from kvfold.plugins.contract.errors import CheckpointError, RequestError
from kvfold.plugins.contract.tokenizer_config import FILE_NAME, TokenizerConfig

# Special tokens that end a turn or a text wherever they exist; llama.cpp ends generation on the same.
END_TOKENS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
)


@dataclass(frozen=True)
class CheckpointTokenizer:
    """A tokenizer as the checkpoint was trained with it.

    Attributes:
        json: contents of tokenizer.json.
        config: contents of tokenizer_config.json.
    """

    json: str
    config: TokenizerConfig

    @cached_property
    def backend(self) -> Tokenizer:
        """The tokenizer itself."""
        return parse_tokenizer("tokenizer.json", self.json)

    def save(self, folder: Path) -> None:
        """Write both files into an existing folder."""
        (folder / "tokenizer.json").write_text(self.json, encoding="utf-8")
        (folder / FILE_NAME).write_text(self.config.model_dump_json(indent=2), encoding="utf-8")


def read_text(path: Path) -> str:
    """A file's text; raises CheckpointError where it is none."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 text: {error}; fetch it again") from error


def parse_tokenizer(source: str, text: str) -> Tokenizer:
    """A Tokenizer from tokenizer.json's text; raises CheckpointError where it is not one.

    Its truncation and padding are off: text is never cut or padded in silence.
    """
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises bare Exception for every parse error
        raise CheckpointError(f"{source} is not a tokenizer of the tokenizers library: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def check_vocabulary(source: str, tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raise CheckpointError when the tokenizer has ids that the embedding lacks."""
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if largest >= vocab_size:
        raise CheckpointError(
            f"{source} has token id {largest}, the model's vocab_size is {vocab_size}; "
            "they do not belong together"
        )


def read_chat_template(source: str, declared: object, special_tokens: Mapping[str, str]) -> str | None:
    """The chat template that conversations use, tried on two small chats.

    Args:
        source: where it is declared, for errors.
        declared: a template, or several by name (an object, or a list of names and templates), of which
            conversations use the one called `default`; None or an empty text where there is none.
        special_tokens: texts that it may name.

    Raises:
        CheckpointError: it is none of that, does not parse, or renders no small chat.
    """
    template = _default_template(source, declared)
    if template is None:
        return None
    try:
        check_chat_template(template, special_tokens)
    except RequestError as error:
        raise CheckpointError(
            f"{source}: {error}; correct the template, or remove it to fold the model without one: it then "
            "completes texts and has no chats"
        ) from error
    return template


def _default_template(source: str, declared: object) -> str | None:
    named = declared
    if isinstance(declared, list) and all(isinstance(item, dict) for item in declared):
        named = {item.get("name"): item.get("template") for item in declared}
    if isinstance(named, dict) and named:
        if "default" not in named:
            raise CheckpointError(
                f"{source} has chat templates called {', '.join(map(str, named))} and none called default; "
                "call the one for conversations default"
            )
        named = named["default"]
    if named is not None and not isinstance(named, str):
        raise CheckpointError(
            f"{source}: the chat template is {named!r:.60}; it must be a text, or an object or a list of "
            "named texts"
        )
    return named or None


def end_token_ids(tokenizer: Tokenizer, declared: Iterable[int | None]) -> tuple[int, ...]:
    """Ids that end a reply: the declared ones first, then special tokens known to end a turn."""
    added = tokenizer.get_added_tokens_decoder().items()
    special = {token.content: index for index, token in added if token.special}
    known = [special[text] for text in END_TOKENS if text in special]
    return tuple(dict.fromkeys([index for index in declared if index is not None] + known))

"""A checkpoint's tokenizer in the bundle's two files: tokenizer.json and tokenizer_config.json."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer

from kvfold.plugins.contract.errors import CheckpointError
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
    """Text to token ids and back, as the checkpoint was trained.

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

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; special tokens in it are recognised, none is added."""
        ids: list[int] = self.backend.encode(text, add_special_tokens=False).ids
        return ids

    def save(self, folder: Path) -> None:
        """Write both files into an existing folder."""
        (folder / "tokenizer.json").write_text(self.json, encoding="utf-8")
        (folder / FILE_NAME).write_text(self.config.model_dump_json(indent=2), encoding="utf-8")


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


def end_token_ids(tokenizer: Tokenizer, declared: Iterable[int | None]) -> tuple[int, ...]:
    """Ids that end a reply: the declared ones first, then special tokens known to end a turn."""
    added = tokenizer.get_added_tokens_decoder().items()
    special = {token.content: index for index, token in added if token.special}
    known = [special[text] for text in END_TOKENS if text in special]
    return tuple(dict.fromkeys([index for index in declared if index is not None] + known))

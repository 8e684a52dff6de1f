"""Tokenizers: what the LLM needs of one, and the bundle's own through the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from kvfold.plugins.contract.errors import BundleError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as TokenizersTokenizer

    from kvfold.plugins.contract.chat_template import Message
    from kvfold.plugins.contract.tokenizer_config import TokenizerConfig


class Tokenizer(Protocol):
    """Text to tokens and back."""

    @property
    def eos_token_ids(self) -> Sequence[int]:
        """Tokens that end a reply."""
        ...

    def encode(self, text: str) -> list[int]:
        """Tokens of a plain prompt, with the BOS token where the model wants one."""
        ...

    def encode_rendered(self, text: str) -> list[int]:
        """Tokens of text that already holds its special tokens, such as a rendered chat."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of tokens, special ones left out; an incomplete character becomes U+FFFD."""
        ...

    def decode_rendered(self, token_ids: Sequence[int]) -> str:
        """Text of tokens, special ones included."""
        ...

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """Text of a conversation; raises RequestError where the model has no chat template."""
        ...


class BundleTokenizer:
    """The tokenizer of a bundle: `tokenizer.json` and `tokenizer_config.json`."""

    def __init__(self, tokenizer: TokenizersTokenizer, config: TokenizerConfig) -> None:
        """Over a loaded tokenizer."""
        self._tokenizer = tokenizer
        self._config = config

    @classmethod
    def load(cls, tokenizer: Path, config: Path) -> BundleTokenizer:
        """Read both files; raises BundleError where one cannot be read."""
        from tokenizers import Tokenizer as TokenizersTokenizer

        from kvfold.plugins.contract.tokenizer_config import TokenizerConfig

        try:
            loaded = TokenizersTokenizer.from_file(str(tokenizer))
        except Exception as error:  # the library raises bare Exception
            raise BundleError(
                f"{tokenizer} cannot be read as a tokenizer: {error}; build it again"
            ) from error
        # A prompt is never cut or padded in silence, whatever its tokenizer.json asks for.
        loaded.no_truncation()
        loaded.no_padding()
        return cls(loaded, TokenizerConfig.parse(config.read_bytes()))

    @property
    def eos_token_ids(self) -> Sequence[int]:
        """Tokens that end a reply."""
        return self._config.eos_token_ids

    def encode(self, text: str) -> list[int]:
        """Tokens of a plain prompt, with the BOS token where the model wants one."""
        ids = self.encode_rendered(text)
        if self._config.add_bos_token and self._config.bos_token_id is not None:
            ids.insert(0, self._config.bos_token_id)
        return ids

    def encode_rendered(self, text: str) -> list[int]:
        """Tokens of text that already holds its special tokens."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of tokens, special ones left out."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def decode_rendered(self, token_ids: Sequence[int]) -> str:
        """Text of tokens, special ones included."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=False))

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """Text of a conversation."""
        from kvfold.plugins.contract.chat_template import render_chat

        return render_chat(self._config, messages, add_generation_prompt=add_generation_prompt)

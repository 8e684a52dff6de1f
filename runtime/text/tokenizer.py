"""Tokenizers: what the LLM needs of one, and the bundle's own through the `tokenizers` library."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from kvfold.plugins.contract.errors import BundleError
from kvfold.plugins.contract.template_text import TemplateText, by_template
from kvfold.runtime.text.control_tokens import ControlTokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer as TokenizersTokenizer

    from kvfold.plugins.contract.chat_template import Message
    from kvfold.plugins.contract.tokenizer_config import TokenizerConfig


class Tokenizer(Protocol):
    """Text to tokens and back."""

    @property
    def fingerprint(self) -> str:
        """The same for those whose tokens mean the same, by the same chat template."""
        ...

    @property
    def eos_token_ids(self) -> Sequence[int]:
        """Tokens that end a reply."""
        ...

    @property
    def chat_template(self) -> str | None:
        """The model's chat template; None where it has none."""
        ...

    def encode(self, text: str, *, control_tokens: bool = True) -> list[int]:
        """Tokens of a plain prompt, with the BOS token where the model wants one.

        Control tokens that the text spells are read as such, or with `control_tokens=False` as text.
        """
        ...

    def encode_rendered(self, text: str) -> list[int]:
        """Tokens of a text, such as a rendered chat, that begins as it is.

        Control tokens are read where a template wrote them (TemplateText); all else is text.
        """
        ...

    @property
    def added_tokens(self) -> Mapping[str, int]:
        """Ids of the tokens that stand for a text by themselves, special or not, by that text."""
        ...

    @property
    def longest_token(self) -> int:
        """Characters that a token stands for, at most."""
        ...

    def decode(self, token_ids: Sequence[int], *, keep: Collection[int] = ()) -> str:
        """Text of tokens; an incomplete character becomes U+FFFD.

        Special tokens are left out, but for those to keep.
        """
        ...

    def decode_rendered(self, token_ids: Sequence[int]) -> str:
        """Text of tokens, special ones included."""
        ...

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> TemplateText:
        """Text of a conversation; raises RequestError where the model has no chat template."""
        ...


class BundleTokenizer:
    """The tokenizer of a bundle: `tokenizer.json` and `tokenizer_config.json`.

    Attributes:
        config: what `tokenizer_config.json` holds.
        fingerprint: of both files.
    """

    def __init__(
        self, tokenizer: TokenizersTokenizer, config: TokenizerConfig, fingerprint: str = ""
    ) -> None:
        """Over a loaded tokenizer; `fingerprint` of its files, where it was read from some."""
        self._tokenizer = tokenizer
        self.config = config
        self.fingerprint = fingerprint
        self._control_tokens = ControlTokens(tokenizer)
        added = tokenizer.get_added_tokens_decoder().items()
        self._special = frozenset(index for index, token in added if token.special)
        self._single: dict[int, str] = {}

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
        settings = config.read_bytes()
        fingerprint = hashlib.sha256(hashlib.sha256(tokenizer.read_bytes()).digest() + settings).hexdigest()
        return cls(loaded, TokenizerConfig.parse(settings), fingerprint)

    @property
    def eos_token_ids(self) -> Sequence[int]:
        """Tokens that end a reply."""
        return self.config.eos_token_ids

    @property
    def chat_template(self) -> str | None:
        """The model's chat template."""
        return self.config.chat_template

    def encode(self, text: str, *, control_tokens: bool = True) -> list[int]:
        """Tokens of a plain prompt, with the BOS token where the model wants one."""
        ids = self.encode_rendered(by_template(text) if control_tokens else TemplateText(text))
        if self.config.add_bos_token and self.config.bos_token_id is not None:
            ids.insert(0, self.config.bos_token_id)
        return ids

    def encode_rendered(self, text: str) -> list[int]:
        """Tokens of a text; control tokens where a template wrote them."""
        return self._control_tokens.encode(text)

    @property
    def added_tokens(self) -> Mapping[str, int]:
        """Ids of added tokens by their text."""
        return self._control_tokens.ids

    @cached_property
    def longest_token(self) -> int:
        """Characters of the longest token; a token for whatever is unknown may stand for more."""
        return max(map(len, self._tokenizer.get_vocab()))

    def decode(self, token_ids: Sequence[int], *, keep: Collection[int] = ()) -> str:
        """Text of tokens, special ones left out but for those to keep."""
        if not keep or self._special.isdisjoint(token_ids):
            return self._decode_single(token_ids[0]) if len(token_ids) == 1 else self._decode(token_ids)
        left_out = self._special.difference(keep)
        shown = [token for token in token_ids if token not in left_out]
        return str(self._tokenizer.decode(shown, skip_special_tokens=False))

    def _decode(self, token_ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=True))

    def _decode_single(self, token_id: int) -> str:
        """Remembered, as a stream asks again."""
        if token_id not in self._single:
            self._single[token_id] = self._decode([token_id])
        return self._single[token_id]

    def decode_rendered(self, token_ids: Sequence[int]) -> str:
        """Text of tokens, special ones included."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=False))

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> TemplateText:
        """Text of a conversation."""
        from kvfold.plugins.contract.chat_template import render_chat

        return render_chat(self.config, messages, add_generation_prompt=add_generation_prompt, tools=tools)

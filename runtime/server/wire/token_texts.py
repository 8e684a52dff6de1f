"""Log probabilities as OpenAI's APIs write them: tokens by their texts and bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from kvfold.runtime.sampling.logprobs import TokenLogprob
from kvfold.runtime.text.detokenize import INCOMPLETE, Detokenizer
from kvfold.runtime.text.tokenizer import Tokenizer

# JSON has no infinity; OpenAI writes this for a token that could not come.
NEVER = -9999.0


class TokenTexts:
    """Texts of a model's tokens, kept once looked up."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Over the model's tokenizer."""
        self._tokenizer = tokenizer
        # Some decoders drop the space before the first token of a text: no token is decoded first.
        self._before = tokenizer.encode_rendered("a")[-1:]
        self._before_text = tokenizer.decode_rendered(self._before)
        self.text = lru_cache(maxsize=2**16)(self._look_up)

    def chat(self, logprobs: Iterable[TokenLogprob]) -> list[dict[str, Any]]:
        """`logprobs.content` of chat completions."""
        return [
            self._entry(one.token_id, one.logprob)
            | {"top_logprobs": [self._entry(token, value) for token, value in one.top]}
            for one in logprobs
        ]

    def completion(
        self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprob | None], offset: int = 0
    ) -> dict[str, Any]:
        """`logprobs` of completions; None among them is the first token of all, which nothing predicts.

        Args:
            token_ids: the tokens.
            logprobs: one for each.
            offset: characters before the first token, in the text of the choice.
        """
        text = Detokenizer(self._tokenizer.decode, before=self._before)
        offsets: list[int] = []
        for token in token_ids:
            offsets.append(offset + len(text.text))
            text.push(token)
        return {
            "tokens": [self.text(token) for token in token_ids],
            "token_logprobs": [None if one is None else max(one.logprob, NEVER) for one in logprobs],
            "top_logprobs": [None if one is None else self._top(one) for one in logprobs],
            "text_offset": offsets,
        }

    def _top(self, one: TokenLogprob) -> dict[str, float]:
        """The likeliest by text, and the token itself; of tokens with one text the likelier counts."""
        top: dict[str, float] = {}
        for token, value in (*one.top, (one.token_id, one.logprob)):
            text = self.text(token)
            top[text] = max(top.get(text, NEVER), value)
        return top

    def _entry(self, token: int, value: float) -> dict[str, Any]:
        text = self.text(token)
        # A part of a character is no text of its own; its bytes are not known from it.
        data = None if INCOMPLETE in text else list(text.encode())
        return {"token": text, "logprob": max(value, NEVER), "bytes": data}

    def _look_up(self, token: int) -> str:
        both = self._tokenizer.decode_rendered([*self._before, token])
        if both.startswith(self._before_text):
            return both[len(self._before_text) :]
        return self._tokenizer.decode_rendered([token])

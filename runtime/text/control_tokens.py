"""Control tokens of a tokenizer: read where a template wrote them, plain text where a message spells them."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from kvfold.plugins.contract.template_text import written_by_template

if TYPE_CHECKING:
    from tokenizers import Encoding
    from tokenizers import Tokenizer as TokenizersTokenizer

Span = tuple[int, int]
# Characters that mean nothing to anybody. So many of them, drawn at random, no message guesses.
PRIVATE_USE, MARK_LENGTH = range(0xF0000, 0xFFFFE), 8


class ControlTokens:
    """Encodes texts that know what of them a template wrote.

    A control token is an added token of the tokenizer that is more than white space and special, or more than
    one character (DeepSeek's added letters are text). It is recognised where the template wrote all of its
    characters. Any other text is encoded as if the tokenizer had no such token, neither among the added ones
    nor in its model's vocabulary.

    Attributes:
        ids: of the control tokens, by their text.
    """

    def __init__(self, tokenizer: TokenizersTokenizer) -> None:
        """Over a loaded tokenizer."""
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder().items()
        self.ids = {
            token.content: index
            for index, token in added
            if token.content.replace("▁", " ").strip() and (token.special or len(token.content) > 1)
        }
        self._known = frozenset(self.ids.values())
        # As the tokenizers library matches: the first one, and of those that begin there the longest.
        spellings = sorted(self.ids, key=len, reverse=True)
        self._spelled = re.compile("|".join(map(re.escape, spellings)) or r"(?!)")
        self._apart: _Apart | None = None

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; characters that are not marked as a template's are only text."""
        encoding = _encode(self._tokenizer, text)
        marks = written_by_template(text)
        if 0 not in marks:
            return list(encoding.ids)
        written = self._find_written(text, marks)
        if self._reads_only(written, encoding, text, marks):
            return list(encoding.ids)
        return self._encode_apart(text, written)

    def _find_written(self, text: str, marks: bytes) -> list[Span]:
        """Where a template wrote all characters of a control token."""
        return [
            (run.start() + found.start(), run.start() + found.end())
            for run in re.finditer(rb"\x01+", marks)
            for found in self._spelled.finditer(text[run.start() : run.end()])
        ]

    def _reads_only(self, written: list[Span], encoding: Encoding, text: str, marks: bytes) -> bool:
        """Whether the tokenizer as it is finds no control token in a message's characters."""
        if [found.span() for found in self._spelled.finditer(text)] != written:
            return False
        if self._known.isdisjoint(encoding.ids):
            return True
        # A normalizer may make one out of other characters, a vocabulary may hold one by itself. White space
        # that a token takes in beside it is no part of its spelling.
        return not any(
            index in self._known and 0 in bytes(marks[at] for at in range(*span) if not text[at].isspace())
            for index, span in zip(encoding.ids, encoding.offsets, strict=True)
        )

    def _encode_apart(self, text: str, written: list[Span]) -> list[int]:
        """Token ids where each written token stands under a name that no message can spell."""
        apart = self._apart
        if apart is None or apart.mark in text:
            apart = self._apart = _Apart(self._tokenizer, self.ids)
        while True:
            pieces: list[str] = []
            places: list[int] = []
            end = length = 0
            for start, stop in written:
                pieces += [text[end:start], apart.names[text[start:stop]]]
                places.append(length + start - end)
                length, end = places[-1] + len(pieces[-1]), stop
            renamed = "".join([*pieces, text[end:]])
            encoding = _encode(apart.tokenizer, renamed)
            found = {
                at: index
                for index, span in zip(encoding.ids, encoding.offsets, strict=True)
                if index in self._known
                for at in range(*span)
            }
            # Some tokenizers know an added token in some surroundings only; elsewhere it is text.
            read = [
                span
                for span, place in zip(written, places, strict=True)
                if found.get(place) == self.ids[text[slice(*span)]]
            ]
            if read == written:
                return list(encoding.ids)
            written = read


def _encode(tokenizer: TokenizersTokenizer, text: str) -> Encoding:
    """A text's encoding. `Tokenizer.encode` lets no other thread run meanwhile: seconds for a long text."""
    return tokenizer.encode_batch([text], add_special_tokens=False)[0]


class _Apart:
    """The tokenizer with other names for its control tokens; made when a message first spells one."""

    def __init__(self, tokenizer: TokenizersTokenizer, tokens: Iterable[str]) -> None:
        self.mark = "".join(chr(secrets.choice(PRIVATE_USE)) for _ in range(MARK_LENGTH))
        self.names = {token: f"{self.mark}{number}{self.mark}" for number, token in enumerate(tokens)}
        self.tokenizer = _rename_tokens(tokenizer, self.names)


def _rename_tokens(tokenizer: TokenizersTokenizer, names: Mapping[str, str]) -> TokenizersTokenizer:
    """The tokenizer with other names for some tokens, and without what puts them together from parts."""
    data = json.loads(tokenizer.to_str())
    data["post_processor"] = None
    for token in data["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = data["model"]
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(token, token): index for token, index in vocabulary.items()}
    else:  # Unigram's pairs
        model["vocab"] = [[names.get(token, token), score] for token, score in vocabulary]
    if "merges" in model:
        model["merges"] = [
            merge for merge in model["merges"] if names.keys().isdisjoint((*merge, "".join(merge)))
        ]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    return type(tokenizer).from_str(json.dumps(data))

"""What a session is, as values: facts, and turns with their exact tokens; a record holds a change of it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby, takewhile
from typing import Any

from kvfold.plugins.contract.template_text import TemplateText, written_by_template
from kvfold.runtime.text.chat import NOTHING, EncodedChat


@dataclass(frozen=True)
class SavedTurn:
    """A turn.

    Attributes:
        said: what was said, as a value that JSON has.
        known: the conversation up to the reply's last token.
    """

    said: Any
    known: EncodedChat


@dataclass(frozen=True)
class SavedSession:
    """A session.

    Attributes:
        facts: what it is besides its turns, such as its system message, as values that JSON has.
        turns: those that count; what was taken back is not among them.
    """

    facts: Mapping[str, Any] = field(default_factory=dict)
    turns: tuple[SavedTurn, ...] = ()

    @property
    def known(self) -> EncodedChat:
        """The conversation up to the end of the last reply."""
        return self.turns[-1].known if self.turns else NOTHING


def change_between(before: SavedSession, after: SavedSession) -> dict[str, Any]:
    """What to record so that a session goes from one state to another: taken back, given up, said, set.

    Turns that stay are recognised by the very value of `known`.
    """
    first = after.turns[:1]
    drop = next((at for at, turn in enumerate(before.turns) if first and _same(turn, first[0])), 0)
    kept = takewhile(lambda pair: _same(*pair), zip(before.turns[drop:], after.turns, strict=False))
    keep = sum(1 for _ in kept)
    base, added = before.known, []
    for turn in after.turns[keep:]:
        added.append({"said": turn.said, **_patch(base, turn.known)})
        base = turn.known
    facts = {name: value for name, value in after.facts.items() if before.facts.get(name, _NONE) != value}
    return {"facts": facts, "drop": drop, "keep": keep, "turns": added}


def apply_change(before: SavedSession, change: Mapping[str, Any]) -> SavedSession:
    """The session after a recorded change."""
    turns = list(before.turns[change["drop"] :][: change["keep"]])
    base = before.known
    for added in change["turns"]:
        base = _patched(base, added)
        turns.append(SavedTurn(added["said"], base))
    return SavedSession({**before.facts, **change["facts"]}, tuple(turns))


_NONE = object()


def _same(old: SavedTurn, new: SavedTurn) -> bool:
    return old is new or (old.known is new.known and bool(old.said == new.said))


def _patch(base: EncodedChat, known: EncodedChat) -> dict[str, Any]:
    """A conversation as what it adds to another: their tokens and texts begin alike.

    Who wrote the text, the template or a message, is told in runs of characters, a message's first.
    """
    old, new = written_by_template(base.text), written_by_template(known.text)
    tokens = _common(
        len(base.token_ids), len(known.token_ids), lambda n: base.token_ids[:n] == known.token_ids[:n]
    )
    text = _common(
        len(old), len(new), lambda n: old[:n] == new[:n] and str.__eq__(base.text[:n], known.text[:n])
    )
    return {
        "tokens": [tokens, known.token_ids[tokens:]],
        "text": [text, known.text[text:], list(_runs(new[text:]))],
    }


def _patched(base: EncodedChat, added: Mapping[str, Any]) -> EncodedChat:
    """The conversation that a patch makes of another."""
    (tokens, ids), (start, text, runs) = added["tokens"], added["text"]
    marks = b"".join(bytes((at % 2,)) * length for at, length in enumerate(runs))
    if len(marks) != len(text):
        raise ValueError("a text and its marks differ in length")
    before = TemplateText(base.text, written_by_template(base.text))[:start]
    return EncodedChat(before + TemplateText(text, marks), [*base.token_ids[:tokens], *ids])


def _common(one: int, other: int, alike: Callable[[int], bool]) -> int:
    """How long two sequences of these lengths are alike from their beginnings."""
    most = min(one, other)
    return most if alike(most) else bisect_left(range(most), True, key=lambda n: not alike(n + 1))


def _runs(marks: bytes) -> Iterator[int]:
    """Lengths of runs of equal marks; the first run is of zeros, and may be empty."""
    if marks[:1] == b"\1":
        yield 0
    for _, run in groupby(marks):
        yield sum(1 for _ in run)

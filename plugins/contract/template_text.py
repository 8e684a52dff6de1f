"""TemplateText: a string that knows which of its characters a chat template wrote, and which a message.

Only what the template wrote may stand for a control token. So what a template does to a string keeps the
marks: joining, cutting, trimming, splitting, replacing, filling in. Where an operation has no way to keep
them, what it gives counts as a message's: text that is only text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self, SupportsIndex

# A field of a text for `%`: all of it, and its name in brackets.
_FIELD = re.compile(r"%(\(.*?\))?[-+ #0]*(?:\d+|\*)?(?:\.(?:\d+|\*)?)?[a-zA-Z%]")


class TemplateText(str):
    """A text and, for each character, whether a template wrote it.

    It gives what Python's own `str` gives, and adds marks to that.
    """

    __slots__ = ("_marks",)
    _marks: bytes

    def __new__(cls, text: str = "", marks: bytes | None = None) -> Self:
        """A text; `marks` has a byte for each character, 1 for the template's. Without, none is."""
        self = super().__new__(cls, text)
        self._marks = bytes(len(text)) if marks is None else marks
        return self

    def __str__(self) -> str:
        """Itself, marks and all."""
        return self

    def __add__(self, other: str) -> TemplateText:
        """Both texts."""
        return join_texts((self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> TemplateText:
        """Both texts, where the left one has no marks."""
        return join_texts((other, self)) if isinstance(other, str) else NotImplemented

    def __mul__(self, count: SupportsIndex) -> TemplateText:
        """The text again and again."""
        return TemplateText(super().__mul__(count), self._marks * int(count))

    def __rmul__(self, count: SupportsIndex) -> TemplateText:
        """The text again and again."""
        return self * count

    def __getitem__(self, key: SupportsIndex | slice) -> TemplateText:
        """A character or a part."""
        part = super().__getitem__(key)
        return TemplateText(part, self._marks[key] if isinstance(key, slice) else bytes((self._marks[key],)))

    def __iter__(self) -> Iterator[str]:
        """Its characters."""
        return (self[at] for at in range(len(self)))

    def __mod__(self, values: Any) -> str:
        """The text with values in its `%` fields."""
        filled = super().__mod__(values)
        rest = iter(values if isinstance(values, tuple) else (values,))
        pieces: list[str] = []
        at = 0
        for field in _FIELD.finditer(self):
            form, start = field.group(), field.start()
            pieces.append(self[at:start])
            at = field.end()
            if form == "%%":
                pieces.append(self[start : start + 1])
            elif field.group(1) is not None:
                pieces.append(form % values)
            elif "*" in form:  # its width is a value too
                return filled
            else:
                value = next(rest)
                pieces.append(value if form == "%s" and isinstance(value, str) else form % (value,))
        return join_texts([*pieces, self[at:]])

    def join(self, texts: Iterable[str]) -> TemplateText:
        """The texts with this one between each two."""
        pieces: list[str] = []
        for text in texts:
            pieces += [self, text] if pieces else [text]
        return join_texts(pieces)

    def replace(self, old: str, new: str, count: SupportsIndex = -1) -> str:
        """The text with `new` for `old`."""
        if not old:
            return super().replace(old, new, count)
        return TemplateText(new, written_by_template(new)).join(self.split(old, count))

    def lstrip(self, chars: str | None = None) -> TemplateText:
        """The text without these characters (or white space) at its start."""
        return self[len(self) - len(super().lstrip(chars)) :]

    def rstrip(self, chars: str | None = None) -> TemplateText:
        """The text without these characters (or white space) at its end."""
        return self[: len(super().rstrip(chars))]

    def strip(self, chars: str | None = None) -> TemplateText:
        """The text without these characters (or white space) at both ends."""
        return self.lstrip(chars).rstrip(chars)

    def removeprefix(self, prefix: str) -> TemplateText:
        """The text without a start."""
        return self[len(self) - len(super().removeprefix(prefix)) :]

    def removesuffix(self, suffix: str) -> TemplateText:
        """The text without an end."""
        return self[: len(super().removesuffix(suffix))]

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        """Its parts between separators."""
        return self._pieces(super().split(sep, maxsplit), len(sep or ""))

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        """Its parts between separators, from the right."""
        return self._pieces(super().rsplit(sep, maxsplit), len(sep or ""))

    def splitlines(self, keepends: bool = False) -> list[str]:
        """Its lines."""
        return self._pieces(super().splitlines(keepends), 0)

    def partition(self, sep: str) -> tuple[str, str, str]:
        """What is before the first separator, the separator, what is after it."""
        before, found, after = self._pieces(super().partition(sep), 0)
        return before, found, after

    def rpartition(self, sep: str) -> tuple[str, str, str]:
        """What is before the last separator, the separator, what is after it."""
        before, found, after = self._pieces(super().rpartition(sep), 0)
        return before, found, after

    def upper(self) -> TemplateText:
        """In upper case."""
        return self._recased(super().upper())

    def lower(self) -> TemplateText:
        """In lower case."""
        return self._recased(super().lower())

    def capitalize(self) -> TemplateText:
        """With the first letter alone in upper case."""
        return self._recased(super().capitalize())

    def title(self) -> TemplateText:
        """With the first letter of each word in upper case."""
        return self._recased(super().title())

    def _pieces(self, parts: Sequence[str], gap: int) -> list[str]:
        """Parts that stand in this text one after another, `gap` characters (or white space) between."""
        pieces: list[str] = []
        at = 0
        for part in parts:
            start = self.find(part, at)
            pieces.append(self[start : start + len(part)])
            at = start + len(part) + gap
        return pieces

    def _recased(self, text: str) -> TemplateText:
        """Letters that become two in another case move all behind them: then no mark is known."""
        return TemplateText(text, self._marks if len(text) == len(self) else None)


def by_template(text: str) -> TemplateText:
    """A text of which the template wrote every character."""
    return TemplateText(text, b"\1" * len(text))


def written_by_template(text: str) -> bytes:
    """A byte for each character: 1 where the template wrote it. A plain `str` is a message's."""
    return text._marks if isinstance(text, TemplateText) else bytes(len(text))


def join_texts(texts: Iterable[str]) -> TemplateText:
    """Texts one after another."""
    pieces = list(texts)
    return TemplateText("".join(pieces), b"".join(map(written_by_template, pieces)))

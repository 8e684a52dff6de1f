"""The rows of a text that the model writes, and the file that keeps them as they grow."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kvfold.runtime.memory.paged_sequence import PagedSequence


@dataclass
class Row:
    """One sequence in the making.

    Attributes:
        index: its place in the text.
        tokens: ids so far, of prompts and of the model alike.
        turn: how many prompts it was given.
        wants_prompt: at its start, and where the model's reply or text has ended.
        answered: tokens since its last prompt began.
        kept: its keys and values; None where they were not computed yet, or are gone.
    """

    index: int
    tokens: list[int] = field(default_factory=list)
    turn: int = 0
    wants_prompt: bool = True
    answered: int = 0
    kept: PagedSequence | None = None

    def add(self, piece: Sequence[int], ends: Collection[int]) -> None:
        """Go on with a piece: the prompt, where it wanted one, and what the model wrote after it."""
        self.turn += self.wants_prompt
        self.answered = len(piece) + (0 if self.wants_prompt else self.answered)
        self.tokens += piece
        self.wants_prompt = self.tokens[-1] in ends


class RowsFile:
    """Pieces of rows, a line each in the order they were written: `[row, [ids]]`."""

    def __init__(self, path: Path) -> None:
        """The file of one text; it is made with the first piece."""
        self._path = path

    def read(self, count: int, ends: Collection[int]) -> list[Row]:
        """The first `count` rows as far as they are written; what a kill left of half a piece is cut off.

        It may hold more rows, of a longer text.
        """
        rows, whole = [Row(index) for index in range(count)], 0
        if not self._path.exists():
            return rows
        for line in self._path.read_bytes().splitlines(keepends=True):
            try:
                index, piece = json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            if index < count:
                rows[index].add(piece, ends)
        os.truncate(self._path, whole)
        return rows

    def append(self, row: int, ids: Sequence[int]) -> None:
        """Keep a piece."""
        with self._path.open("a") as file:
            file.write(f"{json.dumps([row, list(ids)])}\n")

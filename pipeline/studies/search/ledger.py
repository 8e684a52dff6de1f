"""Measurements on disk as they arrive, so that a search that was killed goes on where it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from pydantic import ValidationError as PydanticValidationError

from kvfold.export.search.costs import Cost
from kvfold.plugins.contract.write_aside import write_aside


class LedgerFile(BaseModel):
    """The file.

    Attributes:
        key: of everything that decides a measurement.
        tokens: of the text, [N][L]; a model's own text takes minutes to write.
        costs: by the name of what was changed: `unfolded`, `bank 3 4`, `plan <hash>`.
        answers: NLL of an answer in nat, by the layers that were global: `7 18`.
    """

    model_config = ConfigDict(extra="forbid")

    key: str
    tokens: list[list[int]] = []
    costs: dict[str, Cost] = {}
    answers: dict[str, float] = {}


class Ledger:
    """One search's file; a search with another key starts it anew."""

    def __init__(self, path: Path, key: str) -> None:
        """Take over what is in the file, if it is this search's and can be read."""
        self.path = path
        self.file = LedgerFile(key=key)
        try:
            found = LedgerFile.model_validate_json(path.read_bytes())
        except (OSError, PydanticValidationError):
            return
        if found.key == key:
            self.file = found

    def cost(self, name: str, measure: Callable[[], Cost]) -> Cost:
        """A cost from the file, or else measured and written."""
        if name not in self.file.costs:
            self.put_cost(name, measure())
        return self.file.costs[name]

    def put_tokens(self, tokens: list[list[int]]) -> None:
        """Keep the text."""
        self.file.tokens = tokens
        self._write()

    def put_cost(self, name: str, cost: Cost) -> None:
        """Keep a cost."""
        self.file.costs[name] = cost
        self._write()

    def put_answers(self, globals_: frozenset[int], nll: float) -> None:
        """Keep what some globals came to."""
        self.file.answers[globals_name(globals_)] = nll
        self._write()

    def _write(self) -> None:
        """A kill leaves the old file or the new one."""
        write_aside(self.path, lambda path: path.write_text(self.file.model_dump_json() + "\n"))


def globals_name(globals_: frozenset[int]) -> str:
    """`7 18`; `none` without any."""
    return " ".join(map(str, sorted(globals_))) or "none"

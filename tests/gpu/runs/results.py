"""What a run found so far, as JSON and as Markdown: both files are whole at any moment.

A group's process appends a line of JSON for each row as soon as it has it; the runner reads these lines, so
that what was found before a cut counts.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

Outcome = Literal["waiting", "running", "passed", "failed", "skipped", "cut"]


@dataclass(frozen=True)
class Row:
    """One check or one figure.

    Attributes:
        name: of it.
        outcome: of a check; `measured` for a figure.
        figures: what was found, in words.
        seconds: that it took; 0 where that means nothing.
    """

    name: str
    outcome: str
    figures: str
    seconds: float = 0.0


@dataclass
class GroupResult:
    """A group of a run: how it went, and its rows.

    Attributes:
        name: of it.
        outcome: `cut` where time was up first.
        why: it was skipped, or how it failed.
        seconds: that its process ran.
        rows: in the order they were found.
    """

    name: str
    outcome: Outcome = "waiting"
    why: str = ""
    seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)


@dataclass
class RunResult:
    """A run: where it was and what its groups found.

    Attributes:
        title: of the run, such as `gpu-check`.
        gpu: the GPU; empty where there is none.
        problem: why nothing ran.
        packages: versions, by name.
        seconds: since it began.
        groups: all of them.
    """

    title: str
    gpu: str = ""
    problem: str = ""
    packages: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    groups: list[GroupResult] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Write `<title>.json` and `<title>.md`, each in one step."""
        _replace(folder / f"{self.title}.json", json.dumps(asdict(self), indent=1) + "\n")
        _replace(folder / f"{self.title}.md", self._markdown())

    def _markdown(self) -> str:
        versions = ", ".join(f"{name} {version}" for name, version in self.packages.items())
        lines = [f"# kvfold: {self.title}", "", self.gpu or self.problem, "", versions, ""]
        for group in self.groups:
            why = f": {group.why}" if group.why else ""
            lines += [f"## {group.name}: {group.outcome}{why} ({group.seconds:.0f} s)", ""]
            if group.rows:
                lines += ["| what | outcome | figures | time |", "|---|---|---|---|"]
                lines += [_line(row) for row in group.rows] + [""]
        return "\n".join([*lines, f"{self.seconds:.0f} s in all.", ""])


def append_row(path: Path, row: Row) -> None:
    """Add a row to a group's lines; it is on disk when this returns."""
    with path.open("a") as file:
        file.write(json.dumps(asdict(row)) + "\n")


def read_rows(path: Path) -> list[Row]:
    """The rows of a group so far; the line that it is writing is left out."""
    if not path.exists():
        return []
    whole, _, _ = path.read_text().rpartition("\n")
    return [Row(**json.loads(line)) for line in whole.splitlines()]


def _line(row: Row) -> str:
    figures = row.figures.replace("|", r"\|").replace("\n", " ")
    return f"| {row.name} | {row.outcome} | {figures} | {f'{row.seconds:.1f} s' if row.seconds else ''} |"


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(path.suffix + ".partial")
    partial.write_text(text)
    partial.replace(path)

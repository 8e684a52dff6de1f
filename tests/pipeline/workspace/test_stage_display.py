"""Stages in front of a user: what was skipped, why one runs again, which of how many, how long it took."""

from __future__ import annotations

import io
import re
from pathlib import Path

from rich.console import Console

from kvfold.pipeline.workspace.run_stages import run_stages
from kvfold.pipeline.workspace.stage_display import stage_display
from tests.pipeline.fake_stages import fake_recipe, fake_stages


def run(root: Path, seed: int) -> list[str]:
    """What a log has of a run; durations left out."""
    console = Console(file=io.StringIO(), width=100)
    with stage_display(console) as display:
        run_stages(fake_recipe(seed=seed), root, fake_stages([]), display)
    assert isinstance(console.file, io.StringIO)
    return re.sub(r"\d+\.\d s", "... s", console.file.getvalue()).splitlines()


def test_a_line_per_stage(tmp_path: Path) -> None:
    run(tmp_path, seed=1)
    (tmp_path / "branch" / "b.txt").write_text("")
    assert run(tmp_path, seed=2) == [
        "  = first       unchanged",
        "  ~ second      again: its settings, inputs or code changed",
        "  > second      2 of 4: running second, last time ... s",
        "  + second      ... s",
        "  > third       3 of 4: running third, last time ... s",
        "  + third       ... s",
        f"  ~ branch      again: {tmp_path}/branch/b.txt is truncated: 0 bytes, recorded 6000",
        "  > branch      4 of 4: running branch, last time ... s",
        "  + branch      ... s",
    ]

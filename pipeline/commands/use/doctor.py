"""`kvfold doctor`: what this machine can run, and why not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from rich import get_console

if TYPE_CHECKING:
    from rich.table import Table

    from kvfold.pipeline.machine.doctor.finding import Finding, Status

MARKS: dict[Status, tuple[str, str]] = {
    "ok": ("ok", "green"),
    "absent": ("-", "dim"),
    "problem": ("!!", "bold red"),
}


@click.command("doctor")
def command() -> None:
    """Look at CPU, memory, compiler, kernels, ONNX Runtime, torch, GPU and TensorRT.

    Each line says what is there, or why it cannot be used and what to do. Exit code 2 when something
    that kvfold needs is wrong.

    \b
    Example:
      kvfold doctor
    """
    from kvfold.pipeline.machine.doctor.find_all import find_all

    findings = find_all()
    get_console().print(_table(findings))
    if any(finding.status == "problem" for finding in findings):
        raise click.exceptions.Exit(2)


def _table(findings: list[Finding]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False)
    for finding in findings:
        mark, style = MARKS[finding.status]
        detail = Text(finding.detail)
        if finding.action:
            detail.append(f"\n-> {finding.action}", style="yellow")
        table.add_row(Text(mark, style=style), Text(finding.part, style="bold"), detail)
    return table

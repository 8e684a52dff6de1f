"""`kvfold doctor`: what this machine can run, and why not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from rich import get_console

if TYPE_CHECKING:
    from kvfold.pipeline.machine.doctor.finding import Finding
    from kvfold.pipeline.show.table import Table


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
    from kvfold.pipeline.show.terminal import draw_table

    findings = find_all()
    get_console().print(draw_table(findings_table(findings)))
    if any(finding.status == "problem" for finding in findings):
        raise click.exceptions.Exit(2)


def findings_table(findings: list[Finding]) -> Table:
    """A row for each part of the machine; what to do stands below what is wrong."""
    from kvfold.pipeline.show.table import Cell, Table

    marks = {"ok": Cell("ok", "good"), "absent": Cell("-", "faint"), "problem": Cell("!!", "bad")}
    return Table.of(
        "",
        ("", "", ""),
        (
            (
                Cell(finding.part, "strong"),
                marks[finding.status],
                finding.detail + (f"\n-> {finding.action}" if finding.action else ""),
            )
            for finding in findings
        ),
    ).with_prose()

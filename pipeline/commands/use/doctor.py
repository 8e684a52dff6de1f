"""`kvfold doctor`: what this machine can run, and why not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from rich import get_console

from kvfold.pipeline.machine.doctor.finding import Finding
from kvfold.pipeline.machine.doctor.hardware import check_cpu, check_disk, check_gpu, check_memory
from kvfold.pipeline.machine.doctor.software import (
    check_compiler,
    check_kernels,
    check_library,
    check_onnxruntime,
    check_python,
    check_torch,
)
from kvfold.pipeline.machine.targets import TARGETS, Target
from kvfold.runtime.llm import DEFAULT_TARGET

if TYPE_CHECKING:
    from kvfold.pipeline.show.table import Table

CHECKS = (
    check_python,
    check_cpu,
    check_memory,
    check_disk,
    check_compiler,
    check_kernels,
    check_onnxruntime,
    check_torch,
    check_gpu,
)


@click.command("doctor")
def command() -> None:
    """Look at CPU, memory, compiler, kernels, ONNX Runtime, torch, GPU and TensorRT.

    Each line says what is there, or why it cannot be used and what to do. Exit code 2 when something
    that kvfold needs is wrong.

    \b
    Example:
      kvfold doctor
    """
    from kvfold.pipeline.show.terminal import draw_table

    findings = [check() for check in CHECKS]
    findings += [check_library(target) for target in TARGETS.values() if target.library]
    findings += [_check_target(target) for target in TARGETS.values()]
    get_console().print(draw_table(findings_table(findings)))
    if any(finding.status == "problem" for finding in findings):
        raise click.exceptions.Exit(2)


def _check_target(target: Target) -> Finding:
    """What can be done with a target here; only the default one must work everywhere."""
    part, build, run = f"target {target.name}", target.why_not_build(), target.why_not_run()
    if build is None and run is None:
        return Finding(part, "ok", target.description)
    if target.name == DEFAULT_TARGET:
        return Finding(part, "problem", str(run or build))
    reasons = [f"cannot be {what} here: {why}" for what, why in (("built", build), ("run", run)) if why]
    return Finding(part, "absent", f"{target.description}; {'; '.join(dict.fromkeys(reasons))}")


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

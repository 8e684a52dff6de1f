"""A bench result as a table."""

from __future__ import annotations

from kvfold.pipeline.bench.bench_results import BenchResult, ContenderResult
from kvfold.pipeline.bench.describe_machine import Machine
from kvfold.pipeline.bench.workloads.workloads import Metric
from kvfold.pipeline.show.table import Cell, Table


def bench_table(result: BenchResult) -> Table:
    """A row for each metric, the best of it marked; who was not measured stands in the note."""
    failed = [f"{each.title} failed: {each.failure}" for each in result.contenders if each.failure]
    absent = [f"Not measured: {reason.splitlines()[0]}" for reason in (*result.skipped, *failed)]
    return Table.of(
        "",
        ("", *(f"{each.title} {each.version} ({each.weights})" for each in result.contenders)),
        (
            (
                f"{metric.title}, {metric.unit}",
                *(_cell(result, contender, metric) for contender in result.contenders),
            )
            for metric in result.metrics
        ),
        "\n".join([*absent, describe(result)]),
    )


def describe(result: BenchResult) -> str:
    """How the figures came about, what kvfold runs that its peers do not, and the command."""
    machine = result.machine
    return (
        f"Medians of {result.rounds} fresh processes after a warm-up, {result.threads} threads; "
        f"{_where(machine)}; load average at start {machine.load_average:.2f}; {machine.started}; "
        f"`{result.command}`. kvfold's plan: {result.plan}; its peers run the model unfolded."
    )


def _where(machine: Machine) -> str:
    return machine.cpu if machine.gpu is None else f"{machine.gpu} beside {machine.cpu}"


def format_value(value: float | None) -> str:
    """Three digits, whatever the unit; a dash for what was not measured."""
    if value is None:
        return "-"
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:,.{digits}f}"


def _cell(result: BenchResult, contender: ContenderResult, metric: Metric) -> Cell:
    value = contender.median(metric.key)
    best = value is not None and value == result.best(metric)
    return Cell(format_value(value), "good" if best else None)

"""A bench result for people: a table in the terminal, and the same in Markdown for a README."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from kvfold.pipeline.bench.bench_results import BenchResult, SubjectResult
from kvfold.pipeline.bench.workloads import Metric


def draw_table(result: BenchResult) -> Table:
    """Subjects as rows, medians as cells, the best of each column in bold."""
    table = Table(caption=caption(result), caption_justify="left")
    table.add_column("subject")
    table.add_column("weights")
    for metric in result.metrics:
        table.add_column(f"{metric.title}\n{metric.unit}", justify="right")
    for subject in result.subjects:
        cells = [_styled(result, subject, metric) for metric in result.metrics]
        table.add_row(f"{subject.title} {subject.version}", subject.weights, *cells)
    return table


def write_markdown(result: BenchResult) -> str:
    """Metrics as rows, so that the table stays narrow; bold is best."""
    titles = [f"{subject.title} {subject.version} ({subject.weights})" for subject in result.subjects]
    lines = ["| " + " | ".join(["", *titles]) + " |", "|---" + "|---:" * len(titles) + "|"]
    for metric in result.metrics:
        cells = [_marked(result, subject, metric) for subject in result.subjects]
        lines.append("| " + " | ".join([f"{metric.title}, {metric.unit}", *cells]) + " |")
    failed = [f"{subject.title} failed: {subject.failure}" for subject in result.subjects if subject.failure]
    absent = [f"Not measured: {reason.splitlines()[0]}" for reason in (*result.skipped, *failed)]
    return "\n".join([*lines, "", *absent, caption(result), ""])


def caption(result: BenchResult) -> str:
    """How the figures came about, what kvfold runs that its peers do not, and the command."""
    machine = result.machine
    return (
        f"Medians of {result.rounds} fresh processes after a warm-up, {result.threads} threads; "
        f"{machine.cpu}; load average at start {machine.load_average:.2f}; {machine.started}; "
        f"`{result.command}`. kvfold's plan: {result.plan}; its peers run the model unfolded."
    )


def format_value(value: float | None) -> str:
    """Three digits, whatever the unit; a dash for what was not measured."""
    if value is None:
        return "-"
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:,.{digits}f}"


def _is_best(result: BenchResult, subject: SubjectResult, metric: Metric) -> bool:
    value = subject.median(metric.key)
    return value is not None and value == result.best(metric)


def _styled(result: BenchResult, subject: SubjectResult, metric: Metric) -> Text:
    text = format_value(subject.median(metric.key))
    return Text(text, style="bold green" if _is_best(result, subject, metric) else "")


def _marked(result: BenchResult, subject: SubjectResult, metric: Metric) -> str:
    text = format_value(subject.median(metric.key))
    return f"**{text}**" if _is_best(result, subject, metric) else text

"""One group of `gpu_bench`, in a process of its own: NAME [BUNDLE TARGET] and the file for its rows."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.gpu.runs.kernel_figures import GROUPS, MEASURED, Figure
from tests.gpu.runs.results import Row, append_row


def main(name: str, *others: str) -> None:
    """Measure the group's figures and append each as a row."""
    *bundle, rows = others
    write_rows(_engine(*bundle) if bundle else _kernels(name), Path(rows))


def write_rows(figures: Iterator[Figure], path: Path) -> None:
    """Append each figure as soon as it is there."""
    start = time.monotonic()
    for figure in figures:
        append_row(path, Row(figure.name, MEASURED, figure.figures, time.monotonic() - start))
        start = time.monotonic()


def _kernels(name: str) -> Iterator[Figure]:
    from tests.gpu.runs.gpu_lab import GpuLab

    return GROUPS[name](GpuLab())


def _engine(bundle: str, target: str) -> Iterator[Figure]:
    from tests.gpu.runs.engine_figures import BundleLab, engine_figures

    return engine_figures(BundleLab(Path(bundle), target))


if __name__ == "__main__":
    main(*sys.argv[1:])

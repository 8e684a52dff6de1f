"""`kvfold tune`: how the attention kernels are compiled best for the GPU that is here."""

from __future__ import annotations

from pathlib import Path
from time import monotonic

import click
from rich import get_console

SECONDS = 225.0  # with what comes before and after, 4 minutes where nothing hangs


@click.command("tune")
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where to write the table; else where compilation reads it.",
)
def command(output: Path | None) -> None:
    """Time the attention kernels on this machine's GPU, in 4 minutes.

    Tile sizes, warps, stages and splits are tried for prefill and decode, caches in int8 and float16, and
    heads of 64, 128 and 256 channels. The fastest go into a table with the card's name and the date.
    `kvfold build` takes its kernels from it, for GPUs of the same architecture. Without a GPU nothing
    changes.

    What is found is kept after each of twelve cases, and a run that was stopped goes on from it. The table
    is replaced once all are done. A way that breaks the GPU is named in the table and left out. One that
    hangs costs 10 seconds and the start of another process, which may make the 4 minutes longer.

    \b
    Examples:
      kvfold tune                 for this machine's builds
      kvfold tune -o sm90.json    to look at first
    """
    from kvfold.pipeline.machine.extras import require_extra

    require_extra("cuda")
    from kvfold.pipeline.build.tuning.tune_kernels import tune_kernels
    from kvfold.pipeline.build.tuning.tuning_cases import tuning_cases
    from kvfold.pipeline.build.tuning.tuning_gpu import TuningGpu
    from kvfold.pipeline.build.tuning.tuning_tables import broken_ways_table, tuning_table
    from kvfold.pipeline.show.terminal import draw_table
    from kvfold.pipeline.show.watch import Work, open_watch
    from kvfold.plugins.cuda.tuned_table import table_path

    console = get_console()
    with TuningGpu() as bench:
        work = Work("tune", f"timing kernels on {bench.card}")
        with open_watch(console) as watch, watch.work(work) as progress:
            path = output or table_path(bench.architecture)
            table = tune_kernels(bench, tuning_cases(), SECONDS, monotonic, progress, path)
    console.print(draw_table(tuning_table(table)))
    if table.broken:
        console.print(draw_table(broken_ways_table(table)))
    console.print(f"Wrote {path}", soft_wrap=True)

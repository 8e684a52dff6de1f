"""`kvfold tune`: how the attention kernels are compiled best for the GPU that is here."""

from __future__ import annotations

from pathlib import Path
from time import monotonic

import click
from rich import get_console

SECONDS = 225.0  # with what comes before and after, 4 minutes


@click.command("tune")
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where to write the table; else where compilation reads it.",
)
def command(output: Path | None) -> None:
    """Time the attention kernels on this machine's GPU, in at most 4 minutes.

    Tile sizes, warps, stages and splits are tried for prefill and decode, caches in int8 and float16, and
    heads of 64, 128 and 256 channels. The fastest go into a table with the card's name and the date.
    `kvfold build` takes its kernels from it, for GPUs of the same architecture. Without a GPU nothing
    changes.

    The table is written after each of twelve cases. A run that was stopped goes on from it; a whole table is
    measured anew. A way that breaks the GPU is named in the table and left out.

    \b
    Examples:
      kvfold tune                 for this machine's builds
      kvfold tune -o sm90.json    to look at first
    """
    from kvfold.pipeline.machine.extras import require_extra

    require_extra("cuda")
    from kvfold.pipeline.build.tuning.tune_kernels import begun_table, tune_kernels
    from kvfold.pipeline.build.tuning.tuning_cases import tuning_cases
    from kvfold.pipeline.build.tuning.tuning_gpu import TuningGpu
    from kvfold.pipeline.build.tuning.tuning_tables import tuning_table
    from kvfold.pipeline.show.terminal import draw_table
    from kvfold.pipeline.show.watch import Work, open_watch
    from kvfold.plugins.cuda.tuned_table import table_path

    console = get_console()
    with TuningGpu() as bench:
        work = Work("tune", f"timing kernels on {bench.card}")
        with open_watch(console) as watch, watch.work(work) as progress:
            path, cases = output or table_path(bench.architecture), tuning_cases()
            begun = begun_table(path, bench, cases)
            table = tune_kernels(
                bench, cases, SECONDS, monotonic, progress, begun, lambda found: found.save(path)
            )
    console.print(draw_table(tuning_table(table)))
    console.print(f"Wrote {path}", soft_wrap=True)

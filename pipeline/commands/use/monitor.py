"""`kvfold monitor`: GPUs, CPU, memory and KV pages of running engines, live."""

from __future__ import annotations

import time

import click


@click.command("monitor")
@click.option("--interval", type=click.FloatRange(0.1), default=1.0, show_default=True, help="Seconds.")
@click.option("--once", is_flag=True, help="Print once and end.")
def command(interval: float, once: bool) -> None:
    """Watch GPU memory and load, CPU, memory, and the KV pages and hit rate of running engines.

    Engines that `kvfold run` started are listed, and any Python process inside
    `runtime.status.published`. Ctrl-C ends it.

    \b
    Examples:
      kvfold monitor            a live table, once a second
      kvfold monitor --once     one look
    """
    from rich import get_console
    from rich.console import Group
    from rich.live import Live

    from kvfold.pipeline.machine.gpus import open_nvml, read_gpus
    from kvfold.pipeline.machine.monitor_view import monitor_view
    from kvfold.runtime.status import read_statuses

    with open_nvml() as no_gpu:

        def view() -> Group:
            return monitor_view(no_gpu, [] if no_gpu else read_gpus(), read_statuses())

        if once:
            get_console().print(view())
            return
        with Live(get_renderable=view, auto_refresh=False, console=get_console()) as live:
            while True:
                time.sleep(interval)
                live.refresh()

"""`kvfold monitor`: GPUs, CPU, memory, KV pages of running engines, and a server, live."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import click

# For a server's first snapshot.
FIRST_SECONDS = 5.0


@click.command("monitor")
@click.option("--interval", type=click.FloatRange(0.1), default=1.0, show_default=True, help="Seconds.")
@click.option("--once", is_flag=True, help="Print once and end.")
@click.option("--server", metavar="URL", help="Show a server too, as its page /ui does.")
@click.option(
    "--key-file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="File that holds a key of the server; its roles decide what is shown.",
)
def command(interval: float, once: bool, server: str | None, key_file: Path | None) -> None:
    """Watch GPU memory and load, CPU, memory, and the KV pages and hit rate of running engines.

    Engines that `kvfold run` and `kvfold serve` started are listed, and any Python process inside
    `runtime.status.published`. Ctrl-C ends it.

    \b
    Examples:
      kvfold monitor            a live table, once a second
      kvfold monitor --once     one look
      kvfold monitor --server http://127.0.0.1:8000  what a server does, and why
    """
    from rich import get_console
    from rich.console import Group
    from rich.live import Live

    from kvfold.pipeline.machine.gpus import open_nvml, read_gpus
    from kvfold.pipeline.machine.monitor_view import monitor_view
    from kvfold.pipeline.machine.server_watch import ServerWatch
    from kvfold.runtime.status import read_statuses

    watch = None
    if server is not None:
        watch = ServerWatch(server, None if key_file is None else key_file.read_text().strip())
        watch.wait(FIRST_SECONDS)
    with open_nvml() as no_gpu:

        def view() -> Group:
            seen = None if watch is None else watch.seen
            return monitor_view(no_gpu, [] if no_gpu else read_gpus(), read_statuses(), seen)

        if once:
            get_console().print(view())
            return
        live = Live(get_renderable=view, auto_refresh=False, console=get_console())
        with suppress(KeyboardInterrupt), live:
            while True:
                time.sleep(interval)
                live.refresh()

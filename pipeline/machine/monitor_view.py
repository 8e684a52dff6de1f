"""What the monitor shows: GPUs, the machine, running engines, a server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import psutil
from rich.console import Group, RenderableType
from rich.text import Text

from kvfold.pipeline.machine.gpus import Gpu
from kvfold.pipeline.machine.server_tables import server_tables
from kvfold.pipeline.machine.server_watch import Seen
from kvfold.pipeline.show.table import Table
from kvfold.pipeline.show.terminal import draw_table
from kvfold.plugins.contract.byte_sizes import format_bytes
from kvfold.runtime.status import EngineStatus


def monitor_view(
    no_gpu: str | None, gpus: Sequence[Gpu], engines: Sequence[EngineStatus], server: Seen | None = None
) -> Group:
    """Everything at once.

    Args:
        no_gpu: why there is no GPU to show, or None.
        gpus: the GPUs.
        engines: the published engines of this user.
        server: the one that was asked for, if any.
    """
    return Group(
        no_gpu or draw_table(gpu_table(gpus)),
        draw_table(machine_table()),
        draw_table(engine_table(engines, gpus))
        if engines
        else "\nno running engine is published (`kvfold run` publishes its own)",
        *(_draw_server(server) if server else ()),
    )


def _draw_server(server: Seen) -> Iterator[RenderableType]:
    if server.problem is not None:
        yield Text(f"\n{server.url}: {server.problem}", style="bold red")
    if server.snapshot is not None:
        yield from map(draw_table, server_tables(server.url, server.snapshot))


def gpu_table(gpus: Sequence[Gpu]) -> Table:
    """A line for each GPU."""
    return Table.of(
        "GPU",
        ("", "busy", "memory", "temperature", "power"),
        (
            (
                f"{gpu.index} {gpu.name}",
                "-" if gpu.utilization is None else f"{gpu.utilization} %",
                f"{format_bytes(gpu.used)} of {format_bytes(gpu.total)}",
                f"{gpu.temperature} °C",
                "-" if gpu.power is None else f"{gpu.power:.0f} W",
            )
            for gpu in gpus
        ),
    )


def machine_table() -> Table:
    """CPU since the last call, and memory now."""
    memory = psutil.virtual_memory()
    used = format_bytes(memory.total - memory.available)
    return Table.of(
        "Machine",
        ("", ""),
        (
            (f"CPU, {psutil.cpu_count()} threads", f"{psutil.cpu_percent():.0f} %"),
            ("memory", f"{used} of {format_bytes(memory.total)}"),
        ),
    )


def engine_table(engines: Sequence[EngineStatus], gpus: Sequence[Gpu] = ()) -> Table:
    """A line for each group of each engine: a KV cache that fills up shows in `in use`.

    Where engines are on a GPU, a column says what they hold of its memory beside the KV cache.
    """
    held = {pid: size for gpu in gpus for pid, size in gpu.processes.items()}
    on_gpu = any(engine.pid in held for engine in engines)
    beside = ("GPU, beside it",) if on_gpu else ()
    return Table.of(
        "Engines",
        ("pid", "engine", "hit rate", "KV cache", *beside, "group", "page", "in use", "cached"),
        (row for engine in engines for row in _engine_rows(engine, held if on_gpu else None)),
    )


def _engine_rows(engine: EngineStatus, held: Mapping[int, int] | None) -> Iterator[tuple[str, ...]]:
    cache = engine.metrics.cache
    rate = f"{cache.hit_tokens / cache.queried_tokens:.1%}" if cache.queried_tokens else "-"
    used = engine.metrics.kv_cache_bytes - engine.metrics.free_bytes
    taken = f"{format_bytes(used)} of {format_bytes(engine.metrics.kv_cache_bytes)}"
    labels: tuple[str, ...] = (str(engine.pid), engine.name, rate, taken)
    if held is not None:
        rest = held.get(engine.pid)
        labels += ("-" if rest is None else format_bytes(max(rest - used, 0)),)
    for group, pool in engine.metrics.pools.items():
        yield *labels, group, format_bytes(pool.page_bytes), f"{pool.in_use:,}", f"{pool.idle:,}"
        labels = ("",) * len(labels)

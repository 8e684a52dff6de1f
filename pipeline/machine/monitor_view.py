"""The monitor's tables: GPUs, the machine, running engines."""

from __future__ import annotations

from collections.abc import Sequence

import psutil
from rich.console import Group
from rich.table import Table

from kvfold.pipeline.machine.gpus import Gpu
from kvfold.pipeline.show.tables import make_table
from kvfold.plugins.contract.kv_bytes import format_bytes
from kvfold.runtime.status import EngineStatus


def monitor_view(no_gpu: str | None, gpus: Sequence[Gpu], engines: Sequence[EngineStatus]) -> Group:
    """Everything at once.

    Args:
        no_gpu: why there is no GPU to show, or None.
        gpus: the GPUs.
        engines: the published engines of this user.
    """
    return Group(
        no_gpu or gpu_table(gpus),
        machine_table(),
        engine_table(engines)
        if engines
        else "\nno running engine is published (`kvfold run` publishes its own)",
    )


def gpu_table(gpus: Sequence[Gpu]) -> Table:
    """A line for each GPU."""
    table = make_table("GPU", "", "busy", "memory", "temperature", "power")
    for gpu in gpus:
        table.add_row(
            f"{gpu.index} {gpu.name}",
            "-" if gpu.utilization is None else f"{gpu.utilization} %",
            f"{format_bytes(gpu.used)} of {format_bytes(gpu.total)}",
            f"{gpu.temperature} °C",
            "-" if gpu.power is None else f"{gpu.power:.0f} W",
        )
    return table


def machine_table() -> Table:
    """CPU since the last call, and memory now."""
    memory = psutil.virtual_memory()
    table = make_table("Machine", "", "")
    table.show_header = False
    table.add_row(f"CPU, {psutil.cpu_count()} threads", f"{psutil.cpu_percent():.0f} %")
    table.add_row(
        "memory", f"{format_bytes(memory.total - memory.available)} of {format_bytes(memory.total)}"
    )
    return table


def engine_table(engines: Sequence[EngineStatus]) -> Table:
    """A line for each page pool of each engine: a KV cache that fills up shows in `in use`."""
    table = make_table("Engines", "pid", "engine", "hit rate", "group", "pages", "in use", "cached", "free")
    for engine in engines:
        cache = engine.metrics.cache
        rate = f"{cache.hit_tokens / cache.queried_tokens:.1%}" if cache.queried_tokens else "-"
        labels = (str(engine.pid), engine.name, rate)
        for group, pool in engine.metrics.pools.items():
            counts = (f"{count:,}" for count in (pool.total, pool.in_use, pool.idle, pool.free))
            table.add_row(*labels, group, *counts)
            labels = ("", "", "")
    return table

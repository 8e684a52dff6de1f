"""What Ray and a relay add to a request and to a token: `python -m tests.runtime.cluster.measure_overhead`.

Each layout serves the same synthetic engine, which takes 4 ms a step and little CPU. CPU is that of all
processes of the layout together, so that neighbours on the machine do not count. Times are medians, of one
client at a time.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from kvfold.runtime.cluster.cluster_settings import ClusterSettings
from kvfold.runtime.server.start.make_application import make_application
from kvfold.runtime.server.start.run_server import run_server
from kvfold.runtime.server.start.server_settings import ServerSettings
from tests.root import ROOT
from tests.runtime.cluster.ray_cluster import ray_cluster
from tests.runtime.cluster.tiny_replica import TinyReplica
from tests.runtime.server.processes.real_server import MODEL, write_tokenizer

TINY = TinyReplica(pages=1024, pause=0.004)
TOKENS, AT_ONCE, STREAMS, SINGLES = 64, 8, 160, 150
FAST = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
LAYOUTS: dict[str, tuple[int | None, dict[str, str]]] = {
    "server alone": (None, {}),
    "Ray, no relay": (0, {}),
    "Ray, relay": (1, {}),
    "Ray, throughput mode, no relay": (0, FAST),
    "Ray, throughput mode, relay": (1, FAST),
    "Ray, HAProxy, no relay": (0, FAST | {"RAY_SERVE_ENABLE_HA_PROXY": "1"}),
    "Ray, HAProxy, relay": (1, FAST | {"RAY_SERVE_ENABLE_HA_PROXY": "1"}),
}
PORT = 18011


def main(names: list[str]) -> None:
    """A line for each layout."""
    print("| layout | one token, ms | stream of 64, ms | CPU a request, ms | CPU a token, µs |")
    print("|---|---:|---:|---:|---:|")
    for name in names or LAYOUTS:
        relays, environment = LAYOUTS[name]
        with tempfile.TemporaryDirectory() as folder, _served(Path(folder), relays, environment):
            figures = asyncio.run(_measure())
        print(f"| {name} | " + " | ".join(f"{figure:.2f}" for figure in figures) + " |", flush=True)


@contextmanager
def _served(folder: Path, relays: int | None, environment: dict[str, str]) -> Iterator[None]:
    if relays is not None:
        os.environ.update(environment)
        try:
            with ray_cluster(folder, PORT, TINY, relays=relays):
                yield
        finally:
            for name in environment:
                del os.environ[name]
        return
    write_tokenizer(folder)
    command = [sys.executable, "-m", __spec__.name, "--alone", str(folder)]
    with (folder / "log").open("wb") as log:
        popen = subprocess.Popen(command, cwd=ROOT, stderr=log)
    try:
        while b"serving" not in (folder / "log").read_bytes():
            time.sleep(0.1)
        yield
    finally:
        popen.terminate()
        popen.wait()


def serve_alone(folder: Path) -> None:
    """The bare server."""
    settings = ServerSettings(port=PORT)
    app, state = make_application(MODEL, settings)
    run_server(app, state, settings, lambda: TINY(ClusterSettings(bundle=folder)))


async def _measure() -> tuple[float, float, float, float]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await _many(session, 16, 8, 4)
        one = [await _ask(session, 1) for _ in range(SINGLES)]
        long = [await _ask(session, TOKENS) for _ in range(15)]
        singles = await _cpu(session, STREAMS * 4, 1)
        streams = await _cpu(session, STREAMS, TOKENS)
    token = (streams - singles) / (TOKENS - 1)
    return (
        statistics.median(one) * 1e3,
        statistics.median(long) * 1e3,
        (singles - token) * 1e3,
        token * 1e6,
    )


async def _cpu(session: aiohttp.ClientSession, requests: int, tokens: int) -> float:
    """CPU seconds of a request, of all processes but this one."""
    before = _spent()
    await _many(session, requests, tokens, AT_ONCE)
    return (_spent() - before) / requests


def _spent() -> float:
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        times = process.cpu_times()
        total += times.user + times.system
    return total


async def _many(session: aiohttp.ClientSession, requests: int, tokens: int, at_once: int) -> None:
    gate = asyncio.Semaphore(at_once)

    async def one() -> None:
        async with gate:
            await _ask(session, tokens)

    await asyncio.gather(*(one() for _ in range(requests)))


async def _ask(session: aiohttp.ClientSession, tokens: int) -> float:
    value: dict[str, Any] = {
        **{"messages": [{"role": "user", "content": "a short question"}], "stream": True},
        **{"max_tokens": tokens, "temperature": 0, "ignore_eos": True},
        "logit_bias": {str(token): -100 for token in range(256) if not 64 <= token < 90},
    }
    begun = time.perf_counter()
    async with session.post(f"http://127.0.0.1:{PORT}/v1/chat/completions", json=value) as response:
        body = await response.read()
    assert response.status == 200 and body.endswith(b"[DONE]\n\n"), body
    return time.perf_counter() - begun


if __name__ == "__main__":
    if sys.argv[1:2] == ["--alone"]:
        serve_alone(Path(sys.argv[2]))
    else:
        main(sys.argv[1:])

"""run_serve_bench: answer each scenario in turn, in front of a user."""

from __future__ import annotations

import asyncio
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from kvfold.pipeline.bench.describe_machine import describe_machine
from kvfold.pipeline.bench.serving.all_scenarios import SCENARIOS
from kvfold.pipeline.bench.serving.scenario_names import TITLES
from kvfold.pipeline.bench.serving.scenarios.scenario import Bench
from kvfold.pipeline.bench.serving.serve_results import Measured, ServeResult
from kvfold.pipeline.bench.serving.servers.llama_server import LlamaServer
from kvfold.pipeline.show.watch import Work, open_watch
from kvfold.plugins.contract.progress import Progress

if TYPE_CHECKING:
    from kvfold.pipeline.bench.prepared_models import PreparedModels


def prepare_peer(binary: Path, models: PreparedModels, console: Console) -> LlamaServer:
    """llama.cpp's server and its model, from the same weights; converted once, then kept.

    Raises:
        TargetError: the binary cannot be run.
        UnsupportedModelError: llama.cpp cannot have this model.
    """
    with open_watch(console) as watch, watch.work(Work("llama-server", "preparing its model")):
        peer = LlamaServer(binary.resolve(), models.served_gguf())
    peer.version()
    return peer


def run_serve_bench(bench: Bench, names: Sequence[str], console: Console) -> ServeResult:
    """Answer the scenarios of these names.

    Raises:
        TargetError: a server does not start, or refuses what it is measured by.
        RequestError: a scenario lacks what it needs.
    """
    machine = describe_machine()
    subjects = [f"kvfold {bundle.name}" for bundle in (bench.bundle, *bench.beside)]
    if bench.peer is not None:
        subjects.append(f"llama-server {bench.peer.version()}, {bench.peer.model.name}")
    measured: dict[str, Measured] = {}
    with open_watch(console) as watch:
        for number, name in enumerate(names, 1):
            work = Work(name, TITLES[name], f"{number} of {len(names)}")
            with watch.work(work) as progress:
                measured[name] = asyncio.run(_answer(name, bench, progress))
    return ServeResult(
        command=shlex.join(["kvfold", *sys.argv[1:]]),
        machine=machine,
        subjects=(*subjects, *bench.urls),
        measured=measured,
    )


async def _answer(name: str, bench: Bench, progress: Progress) -> Measured:
    return await SCENARIOS[name](bench, progress)

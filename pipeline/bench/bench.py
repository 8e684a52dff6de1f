"""run_bench: measure kvfold and its peers in turn, one process at a time."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from kvfold.pipeline.bench.bench_results import BenchResult
from kvfold.pipeline.bench.bench_settings import BenchSettings
from kvfold.pipeline.bench.contenders import KVFOLD
from kvfold.pipeline.bench.contenders.contender import Limits
from kvfold.pipeline.bench.describe_machine import describe_machine
from kvfold.pipeline.bench.describe_plan import describe_plan
from kvfold.pipeline.bench.entrants import AbsentPeerError, Entrant, enter_kvfold, enter_peer
from kvfold.pipeline.bench.processes.jobs import Measure
from kvfold.pipeline.bench.processes.process import WorkerError, run_job
from kvfold.pipeline.bench.workloads.workloads import SETS, Batch, list_metrics
from kvfold.pipeline.show.watch import Work, open_watch
from kvfold.plugins.contract.errors import TargetError

if TYPE_CHECKING:
    from kvfold.pipeline.bench.prepared_models import PreparedModels
    from kvfold.plugins.contract.fold_plan import FoldPlan

# Caches are rounded up to this many tokens: a multiple of every contender's KV page.
ROUNDING = 256


def run_bench(
    bundle: Path,
    plan: FoldPlan,
    models: PreparedModels,
    vocab_size: int,
    settings: BenchSettings,
    console: Console,
) -> BenchResult:
    """Measure the engine in `bundle` and every peer, interleaved, so that a busy moment hits all alike.

    Raises:
        TargetError: kvfold's own engine failed, or a required peer cannot take part.
    """
    machine = describe_machine()
    skipped: list[str] = []
    entrants = [enter_kvfold(bundle)]
    for peer in settings.peers:
        try:
            entrants.append(enter_peer(peer, models, settings.peer_python, console))
        except AbsentPeerError as error:
            if settings.required:
                raise TargetError(f"{error}\nor leave {peer} out of --peers") from error
            skipped.append(str(error))
            console.print(Text(f"  - skipped: {error}", style="yellow"))
    for number in range(1, settings.rounds + 1):
        for entrant in entrants:
            if not entrant.result.failure:
                _run_round(entrant, number, vocab_size, settings, console)
    return BenchResult(
        command=shlex.join(["kvfold", *sys.argv[1:]]),
        machine=machine,
        threads=settings.threads,
        rounds=settings.rounds,
        plan=describe_plan(plan),
        metrics=list_metrics(SETS[settings.workloads]),
        contenders=[entrant.result for entrant in entrants],
        skipped=skipped,
    )


def _run_round(
    entrant: Entrant, number: int, vocab_size: int, settings: BenchSettings, console: Console
) -> None:
    """One process of one contender; a peer that fails is out, and its result says so."""
    doing = f"round {number} of {settings.rounds}"
    job = Measure(
        contender=entrant.name,
        model=str(entrant.model),
        workloads=settings.workloads,
        vocab_size=vocab_size,
        limits=needed_limits(settings),
        seed=f"round {number}",
    )
    try:
        with open_watch(console) as watch, watch.work(Work(entrant.result.title, doing)):
            entrant.result.add(run_job(job, entrant.python).values)
    except WorkerError as error:
        if entrant.name == KVFOLD:
            raise TargetError(f"kvfold's engine in {entrant.model} failed with {error}") from error
        entrant.result.failure = f"round {number}: {error}"
        console.print(Text(f"  ! {entrant.result.title}, {doing} failed with {error}", style="red"))


def needed_limits(settings: BenchSettings) -> Limits:
    """The fullest cache and the largest batch of the workloads."""
    workloads = SETS[settings.workloads]
    tokens = max(workload.cache_tokens for workload in workloads)
    sequences = max(workload.sequences for workload in workloads if isinstance(workload, Batch))
    return Limits(settings.threads, -(-tokens // ROUNDING) * ROUNDING, sequences)

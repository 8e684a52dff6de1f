"""run_bench: measure kvfold and its peers in turn, one process at a time."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from kvfold.pipeline.bench.bench_results import BenchResult
from kvfold.pipeline.bench.bench_settings import BenchSettings
from kvfold.pipeline.bench.contenders import KVFOLD
from kvfold.pipeline.bench.contenders.contender import Limits
from kvfold.pipeline.bench.describe_machine import describe_machine
from kvfold.pipeline.bench.describe_plan import describe_plan
from kvfold.pipeline.bench.entrants import AbsentPeerError, Entrant, OwnBundle, enter_kvfold, enter_peer
from kvfold.pipeline.bench.processes.jobs import Measure
from kvfold.pipeline.bench.processes.process import WorkerError, run_job
from kvfold.pipeline.bench.workloads.workloads import SETS, WARM_UP, Workload, choose_workloads, list_metrics
from kvfold.pipeline.show.watch import Work, open_watch
from kvfold.plugins.contract.errors import TargetError, UnsupportedModelError

if TYPE_CHECKING:
    from kvfold.export.model.model_config import ModelConfig
    from kvfold.pipeline.bench.prepared_models import PreparedModels


def run_bench(
    bundles: Sequence[OwnBundle],
    models: PreparedModels,
    config: ModelConfig,
    settings: BenchSettings,
    console: Console,
) -> BenchResult:
    """Measure the engines in `bundles` and every peer, interleaved, so that a busy moment hits all alike.

    Bundles are of one checkpoint; where there are several, each has its folder's name in the table.
    Workloads longer than the model's context are left out, and the result says so.

    Raises:
        TargetError: kvfold's own engine failed, or a required peer cannot take part.
        UnsupportedModelError: the model's context is too short for any workload.
    """
    context_length = config.max_position_embeddings
    chosen = _choose(settings.workloads, context_length)
    machine = describe_machine(settings.target)
    skipped = describe_left_out(SETS[settings.workloads], context_length)
    for reason in skipped:
        console.print(Text(f"  - skipped: {reason}", style="yellow"))
    titles = {f"kvfold {each.root.name}" if len(bundles) > 1 else "kvfold": each for each in bundles}
    entrants = [enter_kvfold(bundle, title) for title, bundle in titles.items()]
    for peer in settings.peers:
        try:
            entrants.append(enter_peer(peer, models, settings.peer_python, console))
        except AbsentPeerError as error:
            if settings.required:
                raise TargetError(f"{error}\nor leave {peer} out of --peers") from error
            skipped.append(str(error))
            console.print(Text(f"  - skipped: {error}", style="yellow"))
    limits = needed_limits(settings.threads, chosen, settings.target)
    measure = partial(Measure, settings.workloads, context_length, config.vocab_size, limits)
    for number in range(1, settings.rounds + 1):
        for entrant in entrants:
            if not entrant.result.failure:
                job = measure(f"round {number}", entrant.name, str(entrant.model))
                _run_round(entrant, job, f"round {number} of {settings.rounds}", console)
    return BenchResult(
        command=shlex.join(["kvfold", *sys.argv[1:]]),
        machine=machine,
        threads=settings.threads,
        rounds=settings.rounds,
        plan=_describe_plans(titles),
        metrics=list_metrics(chosen),
        contenders=[entrant.result for entrant in entrants],
        skipped=skipped,
    )


def _describe_plans(titles: Mapping[str, OwnBundle]) -> str:
    if len(titles) == 1:
        return describe_plan(next(iter(titles.values())).plan)
    return "; ".join(f"{title}: {describe_plan(bundle.plan)}" for title, bundle in titles.items())


def _choose(name: str, context_length: int) -> list[Workload]:
    """The workloads of a set that fit the model, at least one."""
    chosen = choose_workloads(name, context_length)
    if not chosen:
        needed = min(workload.cache_load.length for workload in SETS[name])
        raise UnsupportedModelError(
            f"the model's context is {context_length} tokens, the bench takes sequences of {needed} and "
            "more; bench a model of a longer context"
        )
    return chosen


def _run_round(entrant: Entrant, job: Measure, which: str, console: Console) -> None:
    """One process of one contender; a peer that fails is out, and its result says so."""
    try:
        with open_watch(console) as watch, watch.work(Work(entrant.result.title, which)):
            entrant.result.add(run_job(job, entrant.python).values)
    except WorkerError as error:
        if entrant.name == KVFOLD:
            raise TargetError(f"kvfold's engine in {entrant.model} failed with {error}") from error
        entrant.result.failure = f"{job.seed}: {error}"
        console.print(Text(f"  ! {entrant.result.title}, {which} failed with {error}", style="red"))


def needed_limits(threads: int, workloads: Sequence[Workload], target: str = "cpu") -> Limits:
    """What a contender is loaded for: the workloads, and what warms it up before them."""
    return Limits(threads, tuple(workload.cache_load for workload in (*WARM_UP, *workloads)), target)


def describe_left_out(workloads: Sequence[Workload], context_length: int) -> list[str]:
    """A line for each workload that a model of this context cannot run."""
    return [
        f"{' and '.join(metric.title for metric in workload.metrics)}: a sequence of "
        f"{workload.cache_load.length:,} tokens, the model's context is {context_length:,}"
        for workload in workloads
        if workload.cache_load.length > context_length
    ]

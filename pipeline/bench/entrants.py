"""Who takes part: kvfold, and every peer that is installed and whose model could be prepared."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from kvfold.pipeline.bench.bench_results import ContenderResult
from kvfold.pipeline.bench.contenders import KVFOLD, contender_module
from kvfold.pipeline.bench.processes.jobs import Probe
from kvfold.pipeline.bench.processes.process import WorkerError, run_job
from kvfold.pipeline.show.watch import Work, open_watch
from kvfold.plugins.contract.errors import TargetError, UnsupportedModelError
from kvfold.plugins.contract.version import VERSION

if TYPE_CHECKING:
    from kvfold.pipeline.bench.prepared_models import PreparedModels
    from kvfold.plugins.contract.fold_plan import FoldPlan


@dataclass(frozen=True)
class Entrant:
    """A contender that is ready to be measured.

    Attributes:
        name: in `pipeline.bench.contenders`.
        python: its interpreter.
        model: what its `load` reads.
        result: collects its samples.
    """

    name: str
    python: Path
    model: Path
    result: ContenderResult


@dataclass(frozen=True)
class OwnBundle:
    """A bundle whose engine is measured.

    Attributes:
        root: its folder.
        plan: what its engine runs.
        weights: what its linears were asked to be, for the table.
    """

    root: Path
    plan: FoldPlan
    weights: str


class AbsentPeerError(Exception):
    """A peer cannot take part; the message says why and what to type."""


def enter_kvfold(bundle: OwnBundle, title: str) -> Entrant:
    """kvfold's engine in a bundle."""
    result = ContenderResult(title, bundle.weights, VERSION)
    return Entrant(KVFOLD, Path(sys.executable), bundle.root, result)


def enter_peer(peer: str, models: PreparedModels, python: Path, console: Console) -> Entrant:
    """A peer, its model prepared.

    Raises:
        AbsentPeerError: it is not installed in `python`, or its model could not be prepared.
    """
    module = contender_module(peer)
    try:
        version = run_job(Probe(peer), python).version
        if version is None:
            raise AbsentPeerError(
                f"{module.TITLE} is not installed for {python}; {python} -m {module.INSTALL}"
            )
        work = Work(module.TITLE, f"preparing its model for {version}, converted once, then kept")
        with open_watch(console) as watch, watch.work(work):
            model = models.prepare(peer, version, python)
    except (WorkerError, UnsupportedModelError, TargetError) as error:
        raise AbsentPeerError(f"{module.TITLE} could not be prepared: {error}") from error
    return Entrant(peer, python, model, ContenderResult(module.TITLE, module.WEIGHTS, version))

"""The machine of a bench run: without it no figure means anything."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass

from kvfold.pipeline.machine.doctor.hardware import check_cpu
from kvfold.pipeline.machine.engine_gpu import gpu_name


@dataclass(frozen=True)
class Machine:
    """Facts of the machine when the run started.

    Attributes:
        cpu: model, cores, instruction sets.
        gpu: name of the GPU that was used; None where none was.
        system: operating system and kernel.
        python: version of kvfold's Python.
        load_average: processes that wanted the CPU over the last minute; above 0.5 the run is not alone.
        started: UTC, ISO 8601.
    """

    cpu: str
    system: str
    python: str
    load_average: float
    started: str
    gpu: str | None = None


def describe_machine(target: str = "cpu") -> Machine:
    """The facts, now, for engines of a target."""
    return Machine(
        cpu=check_cpu().detail,
        gpu=gpu_name(target),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        load_average=os.getloadavg()[0],
        started=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )

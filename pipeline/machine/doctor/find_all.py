"""find_all: every check of this machine, and what can be done with each target on it."""

from __future__ import annotations

from kvfold.pipeline.machine.doctor.finding import Finding
from kvfold.pipeline.machine.doctor.hardware import check_cpu, check_disk, check_gpu, check_memory
from kvfold.pipeline.machine.doctor.software import (
    check_compiler,
    check_kernels,
    check_library,
    check_onnxruntime,
    check_python,
    check_torch,
)
from kvfold.pipeline.machine.targets import TARGETS, Target
from kvfold.runtime.llm.llm import DEFAULT_TARGET

CHECKS = (
    check_python,
    check_cpu,
    check_memory,
    check_disk,
    check_compiler,
    check_kernels,
    check_onnxruntime,
    check_torch,
    check_gpu,
)


def find_all() -> list[Finding]:
    """A finding of each check, then of each library that plans are built with, then of each target."""
    libraries = [check_library(target) for target in TARGETS.values() if target.library]
    return [*(check() for check in CHECKS), *libraries, *map(_check_target, TARGETS.values())]


def _check_target(target: Target) -> Finding:
    """What can be done with a target here; only the default one must work everywhere."""
    part, build, run = f"target {target.name}", target.why_not_build(), target.why_not_run()
    if build is None and run is None:
        return Finding(part, "ok", target.description)
    if target.name == DEFAULT_TARGET:
        return Finding(part, "problem", str(run or build))
    reasons = [f"cannot be {what} here: {why}" for what, why in (("built", build), ("run", run)) if why]
    return Finding(part, "absent", f"{target.description}; {'; '.join(dict.fromkeys(reasons))}")

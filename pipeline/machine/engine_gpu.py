"""The GPU that a target's engines run on here: the driver's first one, which CUDA_VISIBLE_DEVICES chooses.

Asking opens no context on it, so it costs none of its memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from kvfold.pipeline.machine.targets import TARGETS
from kvfold.plugins.contract.errors import KvfoldError
from kvfold.runtime.engine.cuda import driver_calls

Fact = TypeVar("Fact")


def gpu_architecture(target: str) -> int | None:
    """Its SM version; None for a target of the CPU, and where no GPU answers."""
    return _ask(target, driver_calls.architecture_of)


def gpu_name(target: str) -> str | None:
    """Its product name; None as of `gpu_architecture`."""
    return _ask(target, driver_calls.name_of)


def _ask(target: str, question: Callable[[Any, Any], Fact]) -> Fact | None:
    if TARGETS[target].backend == "cpu":
        return None
    try:
        driver = driver_calls.load_driver()
        return question(driver, driver_calls.first_gpu(driver))
    except KvfoldError:  # whoever needs the GPU will say it, with what to do
        return None

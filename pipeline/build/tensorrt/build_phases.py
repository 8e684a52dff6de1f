"""How far a build is, from what the library says of its phases."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any


class Phases:
    """Nested phases as a fraction: a phase is a step of its parent, and the outermost is the build.

    Example: step 1 of 4 done, and half of a phase inside step 2, is 1/4 + 1/2 * 1/4 = 0.375.
    """

    def __init__(self) -> None:
        self._steps: dict[str, int] = {}
        self._done: dict[str, int] = {}

    def start(self, name: str, steps: int) -> None:
        """A phase of so many steps begins inside those that are open."""
        self._steps[name] = max(steps, 1)
        self._done[name] = 0

    def complete(self, name: str, step: int) -> None:
        """Step number `step`, from 0, of an open phase is done."""
        self._done[name] = step + 1

    def finish(self, name: str) -> None:
        """A phase ends."""
        del self._steps[name], self._done[name]

    @property
    def fraction(self) -> float:
        """Done of the outermost open phase, 0..1."""
        total, width = 0.0, 1.0
        for name, steps in self._steps.items():
            total += width * self._done[name] / steps
            width /= steps
        return min(total, 1.0)


def progress_monitor(trt: ModuleType, report: Callable[[float], None]) -> Any:
    """An IProgressMonitor of `tensorrt` or `tensorrt_rtx` that reports a fraction which never falls."""
    phases, furthest = Phases(), 0.0

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]  # the module is chosen at run time
        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            phases.start(phase_name, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            nonlocal furthest
            phases.complete(phase_name, step)
            if phases.fraction > furthest:
                furthest = phases.fraction
                report(furthest)
            return True

        def phase_finish(self, phase_name: str) -> None:
            phases.finish(phase_name)

    return Monitor()

"""BuildJob and BuildResult: what the pipeline asks of the process that builds a plan, and its answer."""

from __future__ import annotations

from pathlib import Path

from kvfold.plugins.contract.record import Record
from kvfold.runtime.engine.engine_config import TensorRTLibrary

# Smallest, typical and largest shape of one graph input.
ShapeRange = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


class BuildJob(Record):
    """One plan to build.

    Attributes:
        library: Python module of the builder.
        model: lowered ONNX graph.
        plan: where the plan goes.
        kernels: folder of the kernel library.
        architectures: SM versions that the plan is for.
        profiles: shapes of every dynamic input, for each optimisation profile.
        timing_cache: kept between builds, where the library times its kernels.
    """

    library: TensorRTLibrary
    model: Path
    plan: Path
    kernels: Path
    architectures: tuple[int, ...]
    profiles: tuple[dict[str, ShapeRange], ...]
    timing_cache: Path | None = None


class BuildResult(Record):
    """What a finished build says of itself.

    Attributes:
        version: of the library.
        seconds: parsing and building.
        peak_bytes: largest resident memory of the process.
    """

    version: str
    seconds: float
    peak_bytes: int


class WorkerMessage(Record):
    """A line that the building process writes: progress 0..1, its result, or an error of a plugin's node."""

    progress: float | None = None
    result: BuildResult | None = None
    error: str | None = None

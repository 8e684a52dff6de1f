"""The process that builds a plan: run as a module, with a BuildJob on stdin.

A crash of the library ends this process and no other. It writes a WorkerMessage a line to stdout; everything
that the library logs goes to stderr. The plan is saved as bytes: an engine object needs a GPU.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any, TextIO

from polygraphy.backend.common import SaveBytes
from polygraphy.backend.trt import (
    CreateConfig,
    EngineBytesFromNetwork,
    NetworkFromOnnxPath,
    PostprocessConfig,
    Profile,
)
from polygraphy.logger import G_LOGGER

from kvfold.pipeline.build.end_with_parent import end_with_parent
from kvfold.pipeline.build.tensorrt.build_job import BuildJob, BuildResult, WorkerMessage
from kvfold.pipeline.build.tensorrt.build_phases import progress_monitor
from kvfold.plugins.contract.errors import KvfoldError
from kvfold.plugins.tensorrt.load_plugins import load_plugins, surfacing_errors


def build(job: BuildJob, report: Callable[[float], None]) -> BuildResult:
    """Parse the graph, build the plan and write it.

    Raises:
        KernelError: a node is not what the plugin computes.
        PolygraphyException: the library refused; its log says why.
    """
    start = time.perf_counter()
    trt = import_module(job.library)
    load_plugins(trt, job.kernels)
    monitor = progress_monitor(trt, report)
    config = CreateConfig(
        profiles=[_profile(shapes) for shapes in job.profiles],
        profiling_verbosity=trt.ProfilingVerbosity.DETAILED,
        preview_features=[trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03],
        progress_monitor=monitor,
        load_timing_cache=job.timing_cache if job.timing_cache and job.timing_cache.exists() else None,
    )
    network = NetworkFromOnnxPath(str(job.model), strongly_typed=True)
    engine = EngineBytesFromNetwork(
        network,
        PostprocessConfig(config, _rtx_options(trt, job.architectures)),
        save_timing_cache=job.timing_cache,
    )
    with surfacing_errors():
        SaveBytes(engine, str(job.plan))()
    return BuildResult(
        version=trt.__version__,
        seconds=time.perf_counter() - start,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def _profile(shapes: dict[str, Any]) -> Profile:
    profile = Profile()
    for name, (smallest, typical, largest) in shapes.items():
        profile.add(name, min=smallest, opt=typical, max=largest)
    return profile


def _rtx_options(trt: ModuleType, architectures: tuple[int, ...]) -> Callable[..., None]:
    """TensorRT-RTX builds for GPUs that are not there; TensorRT for the one that is."""

    def set_options(builder: Any, network: Any, config: Any) -> None:
        if hasattr(trt, "ComputeCapability"):
            # Else it may allocate while it runs, which a captured CUDA graph does not allow.
            config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
            config.num_compute_capabilities = len(architectures)
            for index, architecture in enumerate(architectures):
                config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{architecture}"), index)

    return set_options


def main() -> None:
    """Do the job on stdin; ends with exit code 1 where it failed."""
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as messages:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # the library prints to stdout too
        end_with_parent()
        G_LOGGER.module_severity = G_LOGGER.EXTRA_VERBOSE
        job = BuildJob.model_validate_json(sys.stdin.read())
        try:
            result = build(job, lambda fraction: _send(messages, WorkerMessage(progress=fraction)))
        except KvfoldError as error:
            _send(messages, WorkerMessage(error=str(error)))
            raise SystemExit(1) from error
        _send(messages, WorkerMessage(result=result))


def _send(messages: TextIO, message: WorkerMessage) -> None:
    messages.write(message.model_dump_json(exclude_none=True) + "\n")
    messages.flush()


if __name__ == "__main__":
    main()

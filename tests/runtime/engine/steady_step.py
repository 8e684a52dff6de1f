"""What a decode step asks of the driver once its graph is captured: the same of a GPU and of its stand-in."""

from __future__ import annotations

from typing import Any

import pytest

from kvfold.runtime.engine.cuda.device import Device
from kvfold.runtime.engine.onnxruntime_cuda import RUNS_BEFORE_CAPTURE
from kvfold.runtime.llm.llm import LLM
from kvfold.runtime.sampling.params import SamplingParams

# Inputs go up in one copy, tokens of the step before are put among them, a captured graph is replayed; those
# tokens are waited for on the host; then one kernel samples, and its tokens begin to come down.
STEADY = [
    "cuEventSynchronize",
    "cuMemcpyHtoDAsync",
    "cuEventRecord",
    "cuLaunchKernel",
    "cuGraphLaunch",
    "cuEventSynchronize",
    "cuLaunchKernel",
    "cuMemcpyDtoHAsync",
    "cuEventRecord",
]


def calls_of_a_step(llm: LLM, patch: pytest.MonkeyPatch) -> list[str]:
    """Names of the driver's functions that a steady step calls, in order, but the one that chooses the GPU.

    What kvfold's library for GPUs calls in C++ is not among them: a graph replays its kernels, so that a
    `cuLaunchKernel` is the sampler's.
    """
    calls: list[str] = []
    call = Device.call

    def record(device: Device, function: str, *arguments: Any) -> Any:
        calls.append(function)
        return call(device, function, *arguments)

    patch.setattr(Device, "call", record)
    stream = llm.stream([5, 6, 7], SamplingParams(max_tokens=40))
    for _ in range(RUNS_BEFORE_CAPTURE + 3):
        next(stream)
    assert "cuGraphInstantiate" in calls
    calls.clear()
    next(stream)
    return [name for name in calls if name != "cuCtxSetCurrent"]

"""ONNX Runtime's CUDA provider as what computes steps: static addresses, decode steps as CUDA graphs.

The session works on our stream and does not wait at its end. Its own CUDA graphs (`enable_cuda_graph`) wait
after each replay and belong to the thread that captured them, so ours are captured around its runs. None of
this was run where it was written: what a GPU must show is in `make gpu-check`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import onnxruntime as ort

from kvfold.plugins.contract import step as contract
from kvfold.plugins.contract.errors import TargetError
from kvfold.runtime.engine.cuda.buckets import DecodeBuckets
from kvfold.runtime.engine.cuda.device import Device
from kvfold.runtime.engine.cuda.device_pages import DevicePages
from kvfold.runtime.engine.cuda.device_sampler import SamplerSizes, open_sampler
from kvfold.runtime.engine.cuda.gpu_engine import GpuEngine
from kvfold.runtime.engine.cuda.memory_check import StepSizes, check_memory
from kvfold.runtime.engine.cuda.staging import BindingTable, Staging, bind_step
from kvfold.runtime.engine.cuda.step_runner import BoundStep, StepRunner
from kvfold.runtime.engine.cuda.step_shape import StepShape, largest_shape
from kvfold.runtime.engine.engine_config import KERNELS_FOLDER, StepLimits
from kvfold.runtime.engine.engine_files import EngineFiles
from kvfold.runtime.engine.kv_pools import KvPool
from kvfold.runtime.engine.onnxruntime_engine import (
    ELEMENT_TYPES,
    PROVIDERS,
    Provider,
    bind_pools,
    check_provider,
    open_session,
    run_session,
)
from kvfold.runtime.engine.onnxruntime_graph import check_graph
from kvfold.runtime.engine.protocol import EngineInfo, GroupTables, StepInputs

# ONNX's numbers of the types of a step's inputs.
_INPUT_TYPES = {np.dtype(np.int32): 6, np.dtype(np.int64): 7}
# Two runs of a shape take all the memory that it needs, as in ONNX Runtime's own capturing; one to spare.
RUNS_BEFORE_CAPTURE = 3
# Of the GPU, for a step's logits: a row for each sequence, and as many of a prompt's as these hold.
LOGITS_BYTES = 128 << 20
_ADVICE = (
    "lower max_num_batched_tokens and max_num_seqs (step inputs, logits, sampling and ONNX Runtime's own "
    "memory shrink with them)"
)


class SessionProgram:
    """See `StepProgram`: a binding for each bucket of decode steps, and one that prefill steps share."""

    def __init__(
        self,
        session: ort.InferenceSession,
        device: Device,
        pools: Iterable[tuple[KvPool, int]],
        info: EngineInfo,
        limits: StepLimits,
        provider: Provider,
    ) -> None:
        """Take the memory for inputs and logits.

        Args:
            session: on the device's stream.
            device: whose memory it is.
            pools: the KV caches, and the address of each.
            info: of the engine.
            limits: of every step.
            provider: whose memory the session takes addresses of.
        """
        self._session = session
        self._pools = tuple(pools)
        self._limits = limits
        self._plan = info.plan
        self._vocab = info.vocab_size
        self._memory = provider.memory
        self._provider = provider
        self.inputs_size = bind_step(largest_shape(limits, info.plan), info.plan).nbytes
        self.inputs = device.allocate(self.inputs_size)
        self._logits = device.allocate(4 * self._vocab * limits.max_logits)
        self._prefill = self._new_binding()
        self._options = ort.RunOptions()
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self.runs_before_capture: int | None = RUNS_BEFORE_CAPTURE

    def check(self, shape: StepShape) -> None:
        """See `StepProgram.check`."""
        limits = self._limits
        for name, size, limit in (
            ("max_num_batched_tokens", shape.tokens, limits.max_tokens),
            ("max_num_seqs", shape.sequences, limits.max_sequences),
            ("rows of logits", shape.rows, limits.max_logits),
            *(
                (f"pages in group {group.name}", width, limits.max_table_width[group.name])
                for group, width in zip(self._plan.groups, shape.table_widths, strict=True)
            ),
        ):
            if size > limit:
                raise TargetError(f"a step has {size} of {name}, the engine was loaded for {limit}")

    def bind_decode(self, table: BindingTable) -> BoundStep:
        """See `StepProgram.bind_decode`."""
        return self._bind(self._new_binding(), table)

    def bind_prefill(self, table: BindingTable) -> BoundStep:
        """See `StepProgram.bind_prefill`."""
        return self._bind(self._prefill, table)

    def close(self) -> None:
        """See `StepProgram.close`."""
        del self._prefill, self._session

    def _new_binding(self) -> ort.IOBinding:
        binding = self._session.io_binding()
        bind_pools(binding, self._pools, self._provider)
        return binding

    def _bind(self, binding: Any, table: BindingTable) -> BoundStep:
        for each in table.bindings:
            kind, address = _INPUT_TYPES[each.dtype], self.inputs + each.offset
            binding.bind_input(each.name, self._memory, 0, kind, each.shape, address)
            if each.name == contract.LOGITS_INDICES:
                shape = (*each.shape, self._vocab)
        binding.bind_output(contract.LOGITS, self._memory, 0, ELEMENT_TYPES["float32"], shape, self._logits)
        run = partial(run_session, self._session, binding, self._provider, self._options)
        return BoundStep(run, self._logits)


def load_cuda(
    files: EngineFiles, kv_cache_bytes: int, max_num_batched_tokens: int, max_num_seqs: int
) -> GpuEngine:
    """Load a bundle's engine of the backend `cuda` onto the first visible GPU.

    Args:
        files: of the engine.
        kv_cache_bytes: memory that its KV pools together may hold.
        max_num_batched_tokens, max_num_seqs: no step will be larger.

    Raises:
        BundleError: ONNX Runtime cannot read the graph, or it is none of this engine's plan.
        KernelError: a kernel library or the engine's kernels are missing or refused.
        TargetError: this machine's ONNX Runtime has no CUDA provider, or it does not start; or the GPU's
            driver is not there, or failed.
        CapacityError: the GPU has too little memory.
    """
    check_provider(PROVIDERS["cuda"])
    with Device.open().loading() as device:
        return _load(device, files, files.info(kv_cache_bytes), max_num_batched_tokens, max_num_seqs)


def _load(
    device: Device, files: EngineFiles, info: EngineInfo, max_num_batched_tokens: int, max_num_seqs: int
) -> GpuEngine:
    path, provider = files.directory / contract.MODEL_FILE, PROVIDERS["cuda"]
    session = open_session(path, provider, stream=device.stream)
    check_graph(path, session, info)
    return assemble(session, device, files, info, max_num_batched_tokens, max_num_seqs, provider)


def assemble(
    session: ort.InferenceSession,
    device: Device,
    files: EngineFiles,
    info: EngineInfo,
    max_num_batched_tokens: int,
    max_num_seqs: int,
    provider: Provider,
) -> GpuEngine:
    """An engine over a session on the device's stream; `provider` as for `SessionProgram`.

    Memory is counted before any is taken, and again when ONNX Runtime has taken its own in the largest step:
    pages and the logits that sampling changes are taken later.
    """
    limits = step_limits(info, max_num_batched_tokens, max_num_seqs)
    info = replace(info, max_logits=limits.max_logits)
    sizes = StepSizes.of((limits,), info.plan, info.vocab_size, max_num_seqs)
    check_memory({"KV pools": info.kv_cache_bytes, **sizes.parts}, device.free_bytes(), _ADVICE)
    pages = DevicePages(device, info)
    program = SessionProgram(session, device, pages.pools, info, limits, provider)
    staging = Staging(device, program.inputs, program.inputs_size)
    runner = StepRunner(device, program, staging, DecodeBuckets.of(limits, info.plan), info.plan)
    sampler = open_sampler(device, files.directory / KERNELS_FOLDER, max_num_seqs, info.vocab_size)
    engine = GpuEngine(runner, pages, info, max_num_seqs, sampler)
    engine.begin(largest_prompts(limits, info)).wait()
    edited = SamplerSizes.of(max_num_seqs, info.vocab_size).edited
    later = {"KV pools": info.kv_cache_bytes, "logits that sampling changes": edited}
    check_memory(later, device.free_bytes(), _ADVICE)
    return engine


def step_limits(info: EngineInfo, max_num_batched_tokens: int, max_num_seqs: int) -> StepLimits:
    """The steps that an engine takes; memory for the largest is taken once."""
    widest = -(-info.max_context_length // info.plan.page_size)
    tokens = max(max_num_batched_tokens, max_num_seqs)
    return StepLimits(
        max_tokens=tokens,
        max_sequences=max_num_seqs,
        max_table_width={group.name: widest for group in info.plan.groups},
        max_logits=min(tokens, max(max_num_seqs, LOGITS_BYTES // (4 * info.vocab_size))),
    )


def largest_prompts(limits: StepLimits, info: EngineInfo) -> StepInputs:
    """A step as large as any, over no pages: it changes none.

    What ONNX Runtime keeps by the size of a step is at its largest then, before any graph is captured: the
    ones that a Gemm multiplies its bias by are freed, and taken anew, where a step is larger than all before,
    and a captured graph would go on reading the old ones.
    """
    length = min(limits.max_tokens, info.max_context_length)
    starts = np.unique(np.append(np.arange(0, limits.max_tokens, length), limits.max_tokens)).astype(np.int32)
    count, width = len(starts) - 1, -(-length // info.plan.page_size)
    nowhere = GroupTables(np.full((count, width), -1, np.int32), np.full(limits.max_tokens, -1, np.int32))
    return StepInputs(
        input_ids=np.zeros(limits.max_tokens, np.int64),
        cumulative_sequence_length=starts,
        past_seqlens=np.zeros(count, np.int32),
        logits_indices=np.arange(min(limits.max_logits, limits.max_tokens)),
        tables={group.name: nowhere for group in info.plan.groups},
    )

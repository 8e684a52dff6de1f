"""The ONNX Runtime engine: kvfold's CPU kernels over page pools that stay bound for its whole life."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort

from plugins import step as contract
from plugins.cpu.library import register
from plugins.errors import BundleError
from plugins.fold_plan import FoldPlan, KvDtype
from runtime.engine.config import EngineConfig
from runtime.engine.protocol import EngineInfo, StepInputs

MODEL_FILE = "model.onnx"
# The caches the CPU kernel reads; the build refuses any other for this target.
_NUMPY_DTYPES: dict[KvDtype, np.dtype] = {"float32": np.dtype(np.float32), "int8": np.dtype(np.int8)}


class OnnxRuntimeEngine:
    """Executes steps on the CPU. Not thread-safe: one step at a time, as the caches are shared."""

    def __init__(self, session: ort.InferenceSession, info: EngineInfo) -> None:
        self._session = session
        self._info = info
        self._binding = session.io_binding()
        self._pools = _allocate_pools(info)
        for name, pool in self._pools.items():
            self._binding.bind_ortvalue_input(name, pool)
            self._binding.bind_ortvalue_output(name.replace("cache.", "cache_out."), pool)
        self._logits: dict[int, ort.OrtValue] = {}

    @classmethod
    def load(
        cls, directory: Path, plan: FoldPlan, num_pages: Mapping[str, int], threads: int = 0
    ) -> OnnxRuntimeEngine:
        """Load `engine/cpu` of a bundle.

        Args:
            directory: the engine's directory.
            plan: the bundle's FoldPlan.
            num_pages: pages of each horizon group's pool.
            threads: intra-op threads; 0 takes one for each physical core.

        Raises:
            BundleError: ONNX Runtime cannot read the graph.
            KernelError: the kernel library is missing or refused.
        """
        config = EngineConfig.load(directory)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        register(options)
        path = directory / MODEL_FILE
        try:
            session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ORT's binding raises several unrelated types
            raise BundleError(
                f"ONNX Runtime {ort.__version__} cannot load {path}: {error}; build the engine again "
                "with `kvfold build`"
            ) from error
        info = EngineInfo(
            plan=plan,
            num_pages=dict(num_pages),
            vocab_size=config.vocab_size,
            max_context_length=config.max_context_length,
            fingerprint=config.fingerprint,
        )
        return cls(session, info)

    @property
    def info(self) -> EngineInfo:
        """Constant for the engine's life."""
        return self._info

    def execute(self, step: StepInputs) -> np.ndarray:
        """Run one step; the returned logits [R, vocab_size] are overwritten by the next one."""
        feeds = {
            contract.INPUT_IDS: step.input_ids,
            contract.CUMULATIVE_SEQUENCE_LENGTH: step.cumulative_sequence_length,
            contract.PAST_SEQLENS: step.past_seqlens,
            contract.LOGITS_INDICES: step.logits_indices,
        }
        for group, tables in step.tables.items():
            feeds[contract.block_table(group)] = tables.block_table
            feeds[contract.slot_mapping(group)] = tables.slot_mapping
        for name, array in feeds.items():
            self._binding.bind_cpu_input(name, np.ascontiguousarray(array))
        logits = self._logits_buffer(len(step.logits_indices))
        self._binding.bind_ortvalue_output(contract.LOGITS, logits)
        self._session.run_with_iobinding(self._binding)
        result: np.ndarray = logits.numpy()
        return result

    def _logits_buffer(self, rows: int) -> ort.OrtValue:
        if rows not in self._logits:
            shape = (rows, self._info.vocab_size)
            self._logits = {rows: ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32)}
        return self._logits[rows]


def _allocate_pools(info: EngineInfo) -> dict[str, ort.OrtValue]:
    """One zeroed pool per cache input, shared by all sequences."""
    pools = {}
    for bank in info.plan.banks:
        shape = (info.num_pages[bank.group], info.plan.page_size, bank.num_key_value_heads, bank.head_dim)
        for name in contract.cache_inputs(bank.layer):
            pools[name] = ort.OrtValue.ortvalue_from_numpy(
                np.zeros(shape, dtype=_NUMPY_DTYPES[bank.kv_dtype])
            )
    return pools

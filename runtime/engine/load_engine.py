"""Load whichever engine a folder of a bundle holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from kvfold.runtime.engine.engine_config import EngineConfig
from kvfold.runtime.engine.protocol import Engine

if TYPE_CHECKING:
    from kvfold.plugins.contract.fold_plan import FoldPlan
    from kvfold.runtime.runtime_config import RuntimeConfig


def load_engine(
    directory: Path, plan: FoldPlan, num_pages: Mapping[str, int], config: RuntimeConfig
) -> Engine:
    """Load `engine/<target>` of a bundle.

    Args:
        directory: the engine's directory.
        plan: the bundle's FoldPlan.
        num_pages: pages of each horizon group's pool.
        config: its batch sizes must be within a TensorRT plan's limits; threads are of a CPU engine.

    Raises:
        BundleError: the engine's files cannot be read.
        KernelError: its kernels are missing or refused.
        TargetError: it cannot run on this machine, or not with these batch sizes.
        CapacityError: weights, workspace and pools do not fit into the GPU's memory.
    """
    facts = EngineConfig.load(directory).tensorrt
    if facts is not None:
        from kvfold.runtime.engine.tensorrt.profiles import check_batch
        from kvfold.runtime.engine.tensorrt.tensorrt_engine import TensorRTEngine

        check_batch(facts, config.max_num_batched_tokens, config.max_num_seqs)
        return TensorRTEngine.load(directory, plan, num_pages)
    from kvfold.runtime.engine.onnxruntime_engine import OnnxRuntimeEngine

    return OnnxRuntimeEngine.load(directory, plan, num_pages, config.threads)

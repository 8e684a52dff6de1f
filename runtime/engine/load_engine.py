"""Load whichever engine a folder of a bundle holds."""

from __future__ import annotations

from collections.abc import Mapping

from kvfold.runtime.engine.engine_files import EngineFiles
from kvfold.runtime.engine.protocol import Engine


def load_engine(
    files: EngineFiles,
    num_pages: Mapping[str, int],
    max_num_batched_tokens: int,
    max_num_seqs: int,
    threads: int = 0,
) -> Engine:
    """Load an engine.

    Args:
        files: of the engine.
        num_pages: pages of each horizon group's pool.
        max_num_batched_tokens, max_num_seqs: no step will be larger; within a TensorRT plan's limits.
        threads: of an engine on the CPU; 0 takes one for each physical core.

    Raises:
        BundleError: the engine's files cannot be read.
        KernelError: its kernels are missing or refused.
        TargetError: it cannot run on this machine, or not with these batch sizes.
        CapacityError: weights, workspace and pools do not fit into the GPU's memory.
    """
    facts = files.config.tensorrt
    if facts is not None:
        from kvfold.runtime.engine.tensorrt.profiles import check_batch
        from kvfold.runtime.engine.tensorrt.tensorrt_engine import TensorRTEngine

        check_batch(facts, max_num_batched_tokens, max_num_seqs)
        return TensorRTEngine.load(files, num_pages)
    from kvfold.runtime.engine.onnxruntime_engine import OnnxRuntimeEngine

    return OnnxRuntimeEngine.load(files, num_pages, threads)

"""Load whichever engine a folder of a bundle holds."""

from __future__ import annotations

from kvfold.runtime.engine.engine_files import EngineFiles
from kvfold.runtime.engine.protocol import Engine


def load_engine(
    files: EngineFiles,
    kv_cache_bytes: int,
    max_num_batched_tokens: int,
    max_num_seqs: int,
    threads: int = 0,
) -> Engine:
    """Load an engine.

    Args:
        files: of the engine.
        kv_cache_bytes: memory that its KV pools together may hold.
        max_num_batched_tokens, max_num_seqs: no step will be larger; within a TensorRT plan's limits.
        threads: of an engine on the CPU; 0 takes one for each physical core.

    Raises:
        BundleError: the engine's files cannot be read.
        KernelError: its kernels are missing or refused.
        TargetError: it cannot run on this machine, or not with these batch sizes.
        CapacityError: weights, workspace and KV cache do not fit into the GPU's memory, or the system refuses
            the pools' addresses.
    """
    facts = files.config.tensorrt
    if facts is not None:
        from kvfold.runtime.engine.tensorrt.profiles import check_batch
        from kvfold.runtime.engine.tensorrt.tensorrt_engine import TensorRTEngine

        check_batch(facts, max_num_batched_tokens, max_num_seqs)
        return TensorRTEngine.load(files, kv_cache_bytes)
    if files.config.backend == "cuda":
        from kvfold.runtime.engine.onnxruntime_cuda import load_cuda

        return load_cuda(files, kv_cache_bytes, max_num_batched_tokens, max_num_seqs)
    from kvfold.runtime.engine.onnxruntime_engine import OnnxRuntimeEngine

    return OnnxRuntimeEngine.load(files, kv_cache_bytes, threads)

"""Lower a target-neutral graph for ONNX Runtime's CUDA provider: which passes, in which order.

Its fused residual norm summed in float16 once; in 1.31 it sums in float32 (pull request 28682 there).
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from kvfold.export.graph.lower import (
    check_counts,
    check_head_dim,
    check_kv_dtypes,
    count_silus,
    count_sums_normalised,
    count_weights,
    save_lowered,
)
from kvfold.export.graph.passes import (
    activation_dtype,
    cuda_attention,
    float_logits,
    matmul_nbits,
    packed_qkv,
    quick_gelu,
    skip_norms,
)
from kvfold.export.quantize.int4.stored_blocks import NO_BLOCKS, StoredBlocks
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.plugins.contract.progress import Progress, unheard
from kvfold.plugins.cuda.attention_spec import HEAD_SIZES, ActivationDtype


def lower_for_cuda(
    model: ir.Model,
    directory: Path,
    plan: FoldPlan,
    dtype: ActivationDtype,
    blocks: StoredBlocks = NO_BLOCKS,
    progress: Progress = unheard,
) -> dict[str, int]:
    """Write `model.onnx` for ONNX Runtime's CUDA provider with kvfold's attention into `directory`.

    Linears in 4 bits are MatMulNBits, all others are in `dtype`. Norms sum their squares in float32.

    Args:
        model: the target-neutral graph, changed in place.
        directory: an existing directory.
        plan, blocks: of the graph, and of its linears in 4 bits.
        dtype: of the activations.
        progress: told of the share written.

    Returns:
        How often each pass matched.

    Raises:
        ExportError: a pass did not find what it must, or a weight is beyond `dtype`.
        TargetError: no kernel reads the type of a cache, or heads of this size.
    """
    _check_kernels(plan, dtype)
    element = ir.DataType[dtype.upper()]
    in_4_bits = sum(kind in matmul_nbits.INT4 for kind in blocks.quantization.precision.values())
    expected = {
        "matmul_nbits": in_4_bits,
        "activation_dtype": count_weights(model) - in_4_bits,
        "float_logits": 1,
        "skip_norms": count_sums_normalised(model),
        "quick_gelu": count_silus(model),
        "packed_qkv": sum(bool(bank.consumers) for bank in plan.banks),
        "cuda_attention": len(plan.layers),
    }
    counts = {
        "matmul_nbits": matmul_nbits.apply(model, blocks, element),
        "activation_dtype": activation_dtype.apply(model, element),
        "float_logits": float_logits.apply(model),
        "skip_norms": skip_norms.apply(model),
        "quick_gelu": quick_gelu.apply(model),
        "packed_qkv": packed_qkv.apply(model),
        "cuda_attention": cuda_attention.apply(model),
    }
    check_counts(counts, expected)
    save_lowered(model, directory, progress)
    return counts


def _check_kernels(plan: FoldPlan, dtype: ActivationDtype) -> None:
    check_kv_dtypes(plan, f"the cuda target with {dtype} activations", (dtype, "int8"))
    check_head_dim(plan, "the cuda target", HEAD_SIZES)

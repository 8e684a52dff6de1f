"""Lower a target-neutral graph for ONNX Runtime's CUDA provider: which passes, in which order."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from kvfold.export.graph.lower import (
    check_counts,
    check_head_dim,
    check_kv_dtypes,
    count_weights,
    save_lowered,
)
from kvfold.export.graph.passes import activation_dtype, float_logits, stock_attention
from kvfold.plugins.contract.errors import TargetError
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.plugins.contract.progress import Progress, unheard
from kvfold.plugins.cuda.attention_spec import ActivationDtype


def lower_for_cuda(
    model: ir.Model,
    directory: Path,
    plan: FoldPlan,
    dtype: ActivationDtype,
    progress: Progress = unheard,
) -> dict[str, int]:
    """Write `model.onnx` for ONNX Runtime's CUDA provider, with stock ops alone, into `directory`.

    Every linear is computed in `dtype`. Norms stay RMSNormalization, whose kernel sums in float32; the fused
    residual norm that the CPU uses sums in float16 on CUDA.

    Args:
        model: the target-neutral graph, changed in place.
        directory: an existing directory.
        plan: the plan the graph was exported from.
        dtype: of the activations.
        progress: told of the share written.

    Returns:
        How often each pass matched.

    Raises:
        ExportError: a pass did not find what it must, or a weight is beyond `dtype`.
        TargetError: the plan has sink tokens, or stores a cache in a type that the stock op does not read;
            or its heads have a size that it does not.
    """
    check_kv_dtypes(plan, f"the cuda target with {dtype} activations", (dtype, "int8"))
    check_head_dim(plan, "the cuda target", range(16, 257, 16))
    _check_sinks(plan)
    element = ir.DataType[dtype.upper()]
    expected = {
        "activation_dtype": count_weights(model),
        "float_logits": 1,
        "stock_attention": len(plan.layers),
    }
    counts = {
        "activation_dtype": activation_dtype.apply(model, element),
        "float_logits": float_logits.apply(model),
        "stock_attention": stock_attention.apply(model, element),
    }
    check_counts(counts, expected)
    save_lowered(model, directory, progress)
    return counts


def _check_sinks(plan: FoldPlan) -> None:
    for index, layer in enumerate(plan.layers):
        if layer.sink_size:
            raise TargetError(
                f"layer {index} keeps its first {layer.sink_size} tokens visible under a window; ONNX "
                "Runtime's PagedAttention cannot: set sink_size: 0 in the recipe's plan, with head_sink: "
                "true and healing (windows without sinks cost quality), or build for tensorrt, "
                "tensorrt-rtx or cpu"
            )

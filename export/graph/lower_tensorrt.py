"""Lower a target-neutral graph for TensorRT and TensorRT-RTX: which passes, in which order."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from kvfold.export.graph.lower import (
    check_counts,
    check_head_dim,
    check_kv_dtypes,
    count_norms,
    count_weights,
    save_lowered,
)
from kvfold.export.graph.passes import (
    activation_dtype,
    float_logits,
    packed_qkv,
    quantize_dequantize_linears,
    rms_norms,
    tensorrt_attention,
)
from kvfold.export.quantize.precision import Precision
from kvfold.plugins.contract.errors import ExportError
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.plugins.cuda.attention_spec import HEAD_SIZES, ActivationDtype


def lower_for_tensorrt(
    model: ir.Model,
    directory: Path,
    plan: FoldPlan,
    precision: Mapping[str, Precision],
    activation_scales: Mapping[str, float],
    dtype: ActivationDtype,
) -> dict[str, int]:
    """Write `model.onnx` for TensorRT's parser with kvfold's attention plugin into `directory`.

    For strongly typed networks: linears of precision `int8` get Q/DQ, all others stay in `dtype`.

    Args:
        model: the target-neutral graph, changed in place.
        directory: an existing directory.
        plan: the plan the graph was exported from.
        precision: each linear's precision by module path, as calibration decided.
        activation_scales: a static activation scale for every `int8` linear, by module path.
        dtype: of the activations.

    Returns:
        How often each pass matched.

    Raises:
        ExportError: a pass did not find what it must, a scale is missing, a weight is beyond `dtype`.
        TargetError: the plugin does not read the type of a cache, or heads of this size.
    """
    check_kv_dtypes(plan, f"TensorRT with {dtype} activations", (dtype, "int8"))
    check_head_dim(plan, "TensorRT", HEAD_SIZES)
    int8 = _int8_linears(precision, activation_scales)
    element = ir.DataType[dtype.upper()]
    expected = {
        "quantize_dequantize_linears": len(int8),
        "activation_dtype": count_weights(model) - len(int8),
        "float_logits": 1,
        "rms_norms": count_norms(model),
        "packed_qkv": sum(bool(bank.consumers) for bank in plan.banks),
        "tensorrt_attention": len(plan.layers),
    }
    counts = {
        "quantize_dequantize_linears": quantize_dequantize_linears.apply(model, int8, activation_scales),
        "activation_dtype": activation_dtype.apply(model, element),
        "float_logits": float_logits.apply(model),
        "rms_norms": rms_norms.apply(model, element),
        "packed_qkv": packed_qkv.apply(model),
        "tensorrt_attention": tensorrt_attention.apply(model),
    }
    check_counts(counts, expected)
    save_lowered(model, directory)
    return counts


def _int8_linears(precision: Mapping[str, Precision], activation_scales: Mapping[str, float]) -> set[str]:
    names = {name for name, kind in precision.items() if kind == "int8"}
    if missing := sorted(names - activation_scales.keys()):
        raise ExportError(
            f"{len(missing)} int8 linears have no activation scale, the first is {missing[0]}; "
            "run `kvfold export` again"
        )
    return names

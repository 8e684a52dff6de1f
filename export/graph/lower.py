"""Lower a target-neutral graph for a target: which passes, in which order, with what they must find."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from export.graph.model_files import MODEL_FILE, load_model, save_model
from export.graph.passes import int8_linears, skip_norms, swiglu_inputs
from export.quantize.precision import Precision
from plugins.errors import ExportError, TargetError
from plugins.fold_plan import FoldPlan
from plugins.int8_linear.schema import ActivationBits

_ACTIVATION_BITS: dict[Precision, ActivationBits] = {"int8": 8, "int8_a16": 16}
CPU_KV_DTYPES = ("float32", "int8")


def lower_for_cpu(
    source: Path, directory: Path, plan: FoldPlan, precision: Mapping[str, Precision]
) -> dict[str, int]:
    """Write `model.onnx` for ONNX Runtime's CPU provider with kvfold's kernels into `directory`.

    Args:
        source: the target-neutral graph.
        directory: an existing directory.
        plan: the plan the graph was exported from.
        precision: each linear's precision by module path, as calibration decided.

    Returns:
        How often each pass matched.

    Raises:
        ExportError: a pass did not find what it must.
        TargetError: the plan stores a cache in a type that the CPU kernel does not read.
    """
    for bank in plan.banks:
        if bank.kv_dtype not in CPU_KV_DTYPES:
            raise TargetError(
                f"layer {bank.layer} stores its KV as {bank.kv_dtype}; the cpu target reads "
                f"{' and '.join(CPU_KV_DTYPES)}: set kv_dtype in the recipe's plan"
            )
    model = load_model(source)
    int8 = {name: _ACTIVATION_BITS[kind] for name, kind in precision.items() if kind != "float32"}
    norms = sum(node.op_type == "RMSNormalization" for node in model.graph)
    counts = {
        "int8_linears": int8_linears.apply(model, int8),
        "swiglu_inputs": swiglu_inputs.apply(model),
        "skip_norms": skip_norms.apply(model),
    }
    _expect("int8_linears", counts, len(int8))
    _expect("swiglu_inputs", counts, sum(name.endswith(".down_proj") for name in int8))
    _expect("skip_norms", counts, norms - 1)  # the first norm reads the embedding, not a sum
    _finish(model)
    save_model(model, directory / MODEL_FILE)
    return counts


def _expect(name: str, counts: Mapping[str, int], expected: int) -> None:
    if counts[name] != expected:
        raise ExportError(
            f"graph pass {name} matched {counts[name]} places, {expected} were expected; "
            "the graph is not the one this version of kvfold exports: run `kvfold export` again"
        )


def _finish(model: ir.Model) -> None:
    """Drop what the passes left unused, so that no float weight travels beside its int8 form."""
    RemoveUnusedNodesPass()(model)

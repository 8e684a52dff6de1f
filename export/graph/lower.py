"""What lowering for any target has in common: refused caches, counted passes, and the file it ends in."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from kvfold.export.graph.linears import find_linears
from kvfold.export.graph.model_files import save_model
from kvfold.plugins.contract.errors import ExportError, TargetError
from kvfold.plugins.contract.fold_plan import FoldPlan, KvDtype
from kvfold.plugins.contract.progress import Progress, unheard
from kvfold.plugins.contract.step import MODEL_FILE


def check_kv_dtypes(plan: FoldPlan, target: str, readable: Collection[KvDtype]) -> None:
    """See that the target's kernels read every cache of the plan; raises TargetError."""
    for bank in plan.banks:
        if bank.kv_dtype not in readable:
            raise TargetError(
                f"layer {bank.layer} stores its KV as {bank.kv_dtype}; {target} reads "
                f"{' and '.join(readable)}: set kv_dtype in the recipe's plan"
            )


def check_head_dim(plan: FoldPlan, target: str, sizes: Sequence[int]) -> None:
    """See that the target's kernels read heads of this size; raises TargetError."""
    if plan.head_dim not in sizes:
        evenly = isinstance(sizes, range) and f"{sizes[0]} to {sizes[-1]} in steps of {sizes.step}"
        listed = evenly or ", ".join(map(str, sizes))
        raise TargetError(
            f"a head has {plan.head_dim} channels, {target} reads {listed}; build for another target"
        )


def check_counts(counts: Mapping[str, int], expected: Mapping[str, int]) -> None:
    """See that each pass matched as often as the plan and the graph say; raises ExportError."""
    for name, count in counts.items():
        if count != expected[name]:
            raise ExportError(
                f"graph pass {name} matched {count} places, {expected[name]} were expected; "
                "the graph is not the one this version of kvfold exports: run `kvfold export` again"
            )


def count_norms(model: ir.Model) -> int:
    """How many norms the target-neutral graph has."""
    return sum(node.op_type == "RMSNormalization" for node in model.graph)


def count_sums_normalised(model: ir.Model) -> int:
    """How many norms of the target-neutral graph read a sum: not the embedding, nor what a linear gave.

    Which those are, a family decides: norms may stand before a block's parts, after them, or both.
    """
    alone = ("Gather", "Gemm", "Split")
    norms = (node for node in model.graph if node.op_type == "RMSNormalization")
    streams = (node.inputs[0].producer() for node in norms if node.inputs[0] is not None)
    return sum(producer is None or producer.op_type not in alone for producer in streams)


def count_silus(model: ir.Model) -> int:
    """How many gates the target-neutral graph activates by silu; where a family has GeGLU, none."""
    return sum(node.op_type == "Sigmoid" for node in model.graph)


def count_weights(model: ir.Model) -> int:
    """How often the target-neutral graph reads a weight: embedding, linears, their biases, and norms."""
    linears = sum(1 + (linear.bias is not None) for linear in find_linears(model))
    return 1 + linears + count_norms(model)


def save_lowered(model: ir.Model, directory: Path, progress: Progress = unheard) -> None:
    """Write the graph, without what the passes left unused: no float weight travels beside its int8 form."""
    RemoveUnusedNodesPass()(model)
    save_model(model, directory / MODEL_FILE, progress)

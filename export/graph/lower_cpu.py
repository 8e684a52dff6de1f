"""Lower a target-neutral graph for ONNX Runtime's CPU provider: which passes, in which order."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from kvfold.export.graph.lower import (
    check_counts,
    check_head_dim,
    check_kv_dtypes,
    count_sums_normalised,
    save_lowered,
)
from kvfold.export.graph.passes import (
    int4_linears,
    int8_embedding,
    int8_linears,
    skip_norms,
    swiglu_inputs,
)
from kvfold.export.quantize.int4.stored_blocks import NO_BLOCKS, StoredBlocks
from kvfold.export.quantize.precision import Precision, rounds_embedding
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.plugins.contract.progress import Progress, unheard
from kvfold.plugins.int8_linear.schema import ActivationBits

INT8: dict[Precision, ActivationBits] = {"int8": 8, "int8_a16": 16}
INT4: dict[Precision, ActivationBits] = {"int4": 8, "int4_a16": 16}


def lower_for_cpu(
    model: ir.Model,
    directory: Path,
    plan: FoldPlan,
    precision: Mapping[str, Precision],
    blocks: StoredBlocks = NO_BLOCKS,
    progress: Progress = unheard,
) -> dict[str, int]:
    """Write `model.onnx` for ONNX Runtime's CPU provider with kvfold's kernels into `directory`.

    Args:
        model: the target-neutral graph, changed in place.
        directory: an existing directory.
        plan: the plan the graph was exported from.
        precision: each linear's precision by module path, as calibration decided.
        blocks: of those in 4 bits.
        progress: told of the share written; weights are read, quantised and packed then.

    Returns:
        How often each pass matched.

    Raises:
        ExportError: a pass did not find what it must.
        TargetError: the plan stores a cache in a type that the CPU kernel does not read.
    """
    check_kv_dtypes(plan, "the cpu target", ("float32", "int8"))
    check_head_dim(plan, "the cpu target", range(2, 257, 2))
    int8, int4 = (
        {name: bits[kind] for name, kind in precision.items() if kind in bits} for bits in (INT8, INT4)
    )
    expected = {
        "int8_linears": len(int8),
        "int4_linears": len(int4),
        "int8_embedding": int(rounds_embedding(precision)),
        "swiglu_inputs": sum(name.endswith(".down_proj") for name in int8 | int4),
        "skip_norms": count_sums_normalised(model),
    }
    counts = {
        "int8_linears": int8_linears.apply(model, int8),
        "int4_linears": int4_linears.apply(model, int4, blocks),
        "int8_embedding": int8_embedding.apply(model) if rounds_embedding(precision) else 0,
        "swiglu_inputs": swiglu_inputs.apply(model),
        "skip_norms": skip_norms.apply(model),
    }
    check_counts(counts, expected)
    save_lowered(model, directory, progress)
    return counts

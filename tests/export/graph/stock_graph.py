"""Graphs with com.microsoft::PagedAttention, the op that ONNX Runtime has for CUDA: a peer of kvfold's.

The stock op has no `sink_size`, though it has `head_sink`, and takes everything but the KV scales in the
activation's type.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from kvfold.export.graph.attention import SMALL_INPUTS, find_attention, present_inputs
from kvfold.export.graph.constants import cast_constant
from kvfold.export.graph.lower import check_counts, count_weights, save_lowered
from kvfold.export.graph.passes import activation_dtype, float_logits
from kvfold.plugins.contract.errors import ExportError
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.plugins.cuda.attention_spec import ActivationDtype
from kvfold.plugins.paged_attention.schema import DOMAIN, INPUTS

STOCK_DOMAIN = "com.microsoft"
_SCALES = ("k_scale", "v_scale")


def lower_with_stock_attention(
    model: ir.Model, directory: Path, plan: FoldPlan, dtype: ActivationDtype
) -> dict[str, int]:
    """Write `model.onnx` with stock ops alone, in the arguments and the answer of `lower_for_cuda`."""
    element = ir.DataType[dtype.upper()]
    expected = {
        "activation_dtype": count_weights(model),
        "float_logits": 1,
        "stock_attention": len(plan.layers),
    }
    counts = {
        "activation_dtype": activation_dtype.apply(model, element),
        "float_logits": float_logits.apply(model),
        "stock_attention": _use_stock_attention(model, element),
    }
    check_counts(counts, expected)
    save_lowered(model, directory)
    return counts


def _use_stock_attention(model: ir.Model, dtype: ir.DataType) -> int:
    """Move every attention node to the stock domain.

    Raises:
        ExportError: a node keeps sink tokens visible, which the stock op cannot.
    """
    matches = 0
    for node in find_attention(model):
        if node.attributes.pop("sink_size").as_int():
            raise ExportError(f"{node.name} has sink tokens, which the stock PagedAttention does not know")
        for name, value in present_inputs(node).items():
            if name in SMALL_INPUTS and name not in _SCALES:
                node.replace_input_with(INPUTS.index(name), cast_constant(model, value, dtype))
        node.domain = STOCK_DOMAIN
        matches += 1
    del model.opset_imports[DOMAIN]
    model.opset_imports[STOCK_DOMAIN] = 1
    return matches

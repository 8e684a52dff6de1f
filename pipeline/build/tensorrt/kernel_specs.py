"""The attention nodes of a lowered graph, and what kernels each needs."""

from __future__ import annotations

import onnx_ir as ir

from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.plugins.cuda.attention_spec import ActivationDtype, AttentionSpec
from kvfold.plugins.tensorrt.attributes import read_node
from kvfold.plugins.tensorrt.node_form import PLUGIN_NAME, PLUGIN_NAMESPACE


def attention_nodes(model: ir.Model) -> list[ir.Node]:
    """In order."""
    return [node for node in model.graph if (node.domain, node.op_type) == (PLUGIN_NAMESPACE, PLUGIN_NAME)]


def spec_of(node: ir.Node, plan: FoldPlan, dtype: ActivationDtype) -> AttentionSpec:
    """What the plugin will make of a node of the form of `plugins.tensorrt.node_form`; raises KernelError."""
    values = {name: attribute.value for name, attribute in node.attributes.items()}
    read = read_node(str(node.name), values)
    return AttentionSpec(
        attributes=read.attributes,
        head_size=plan.head_dim,
        page_size=plan.page_size,
        activation_dtype=dtype,
        cache_dtype="int8" if read.attributes.k_quant_type == "PER_CHANNEL" else dtype,
        writes=read.writes,
        qk_norm="q_norm_weight" in read.inputs,
        head_sink="head_sink" in read.inputs,
    )

"""Find the linear layers of an exported graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from kvfold.plugins.contract.errors import ExportError
from kvfold.plugins.int8_linear.schema import DOMAIN, ActivationBits


@dataclass(frozen=True)
class Linear:
    """One `Gemm(x, W, bias?)` with W [out, in] constant; its name is the module's path."""

    name: str
    node: ir.Node
    x: ir.Value
    constant: ir.TensorProtocol
    bias: ir.Value | None

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        out_features, in_features = self.constant.shape.numpy()
        return out_features, in_features

    @property
    def weight(self) -> np.ndarray:
        """W float32 [out, in], read anew on each access."""
        return self.constant.numpy()

    @property
    def output(self) -> ir.Value:
        """y [T, out]."""
        return self.node.outputs[0]


def find_linears(model: ir.Model) -> Iterator[Linear]:
    """Every linear of the graph, in order."""
    for node in list(model.graph):
        if node.op_type != "Gemm" or node.domain:
            continue
        x, weight, *bias = node.inputs
        constant = weight.const_value if weight is not None else None
        if x is not None and constant is not None and node.attributes["transB"].as_int() == 1:
            name = (node.name or "").removesuffix(".Gemm")
            yield Linear(name, node, x, constant, bias[0] if bias else None)


def check_width(linear: Linear, kind: str, most: int) -> None:
    """See that a linear's sums fit the op's integers; raises ExportError."""
    if linear.shape[1] > most:
        raise ExportError(
            f"{linear.name} has {linear.shape[1]} inputs, an {kind} linear at most {most}; "
            "set linears: none in the recipe's quantize section"
        )


def replace_linear(
    model: ir.Model,
    linear: Linear,
    op_type: str,
    constants: Sequence[ir.Value | None],
    activation_bits: ActivationBits,
) -> None:
    """Put an op of kvfold's domain, which reads x and `constants`, in a linear's place."""
    out_features, in_features = linear.shape
    node = ir.node(
        op_type,
        inputs=[linear.x, *constants],
        attributes={
            "in_features": in_features,
            "out_features": out_features,
            "activation_bits": activation_bits,
        },
        domain=DOMAIN,
        name=f"{linear.name}.{op_type}",
    )
    ir.convenience.replace_nodes_and_values(
        model.graph, linear.node, [linear.node], [node], [linear.output], [node.outputs[0]]
    )

"""The gated MLP of a block, by its activation."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from kvfold.export.model.fused import fused
from kvfold.export.model.model_config import Activation, ModelConfig


class GatedMLP(nn.Module):
    """down(activation(gate(x)) * up(x)) (SwiGLU and GeGLU of arXiv 2002.05202), gate and up packed."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden, middle, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.activation: Activation = config.hidden_act
        self.gate_up_proj = nn.Linear(hidden, 2 * middle, bias=bias)
        self.down_proj = nn.Linear(middle, hidden, bias=bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """MLP output, the shape of `hidden`."""
        gate, up = self.gate_up_proj(hidden).chunk(2, dim=-1)
        output: Tensor = self.down_proj(_gated(gate, up, self.activation))
        return output


@fused
def _gated(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    if activation == "gelu_tanh":
        return functional.gelu(gate, approximate="tanh") * up
    return functional.silu(gate) * up

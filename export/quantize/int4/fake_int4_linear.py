"""A linear in 4 bits in PyTorch, as it is deployed."""

from __future__ import annotations

from torch import Tensor, nn

from kvfold.export.quantize.int4.blocks import Blocks
from kvfold.plugins.int4_linear.reference import quantize_block_remainder, quantize_blocks
from kvfold.plugins.int8_linear.schema import ActivationBits


class FakeInt4Linear(nn.Module):
    """Int4Linear but for the order of its sums: float32 products of integers and of what blocks stand for."""

    def __init__(self, blocks: Blocks, bias: Tensor | None, activation_bits: ActivationBits = 8) -> None:
        """Of a weight in blocks."""
        super().__init__()
        self.activation_bits = activation_bits
        self.register_buffer("weight", blocks.values)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """y [..., out] of x [..., in]."""
        quantized, factor, scale = quantize_blocks(x)
        weight = self.get_buffer("weight")
        y = (quantized * factor @ weight.T) * scale
        if self.activation_bits == 16:
            low, low_scale = quantize_block_remainder(x, quantized, factor, scale)
            y = y + (low * factor @ weight.T) * low_scale
        bias: Tensor | None = self._buffers["bias"]
        return y if bias is None else y + bias

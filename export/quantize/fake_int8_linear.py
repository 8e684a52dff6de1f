"""An int8 linear in PyTorch exactly as it is deployed, and how far off it is."""

from __future__ import annotations

from collections.abc import Container, Mapping

import torch
from torch import Tensor, nn

from kvfold.export.model.decoder import PACKED
from kvfold.plugins.int8_linear.packing import quantize_weight
from kvfold.plugins.int8_linear.reference import quantize_remainder, quantize_tokens
from kvfold.plugins.int8_linear.schema import ActivationBits


class FakeInt8Linear(nn.Module):
    """Int8Linear on float tensors that hold integers.

    Products are summed in float32: exact below 2^24, which 1,040 inputs of 127 * 127 reach; above
    that, sums round in the last of 24 bits, far below what int8 itself rounds.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, activation_bits: ActivationBits = 8) -> None:
        """Quantise float weight [out, in]."""
        super().__init__()
        self.activation_bits = activation_bits
        quantized, scale = quantize_weight(weight.numpy())
        self.register_buffer("weight", torch.from_numpy(quantized).float())
        self.register_buffer("weight_scale", torch.from_numpy(scale))
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """y [..., out] of x [..., in]."""
        quantized, scale = quantize_tokens(x)
        weight, weight_scale = self.get_buffer("weight"), self.get_buffer("weight_scale")
        y = (quantized @ weight.T) * (scale * weight_scale)
        if self.activation_bits == 16:
            low, low_scale = quantize_remainder(x, quantized, scale)
            y = y + (low @ weight.T) * (low_scale * weight_scale)
        bias: Tensor | None = self._buffers["bias"]
        return y if bias is None else y + bias


def round_embedding(weight: Tensor) -> Tensor:
    """The embedding [vocab, hidden] as an engine that holds it in int8 gives its rows."""
    quantized, scale = quantize_weight(weight.numpy())
    return torch.from_numpy(quantized).float().mul_(torch.from_numpy(scale)[:, None])


def tensor_names(linear: str, weights: Container[str]) -> list[str]:
    """Hugging Face names of the weight tensors that one linear of the decoder packs, in order."""
    for packed, parts in PACKED.items():
        if linear.endswith(f".{packed}"):
            prefix = linear.removesuffix(packed.rsplit(".", 1)[1])
            names = [f"{prefix}{part}.weight" for part in parts]
            return [name for name in names if name in weights]
    if f"{linear}.weight" in weights:
        return [f"{linear}.weight"]
    return ["model.embed_tokens.weight"]  # lm_head of a model with tied embeddings


def linear_weight(linear: str, weights: Mapping[str, Tensor]) -> Tensor:
    """Weight [out, in] of a linear of the decoder."""
    parts = [weights[name] for name in tensor_names(linear, weights)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)

"""RMSNorm, and where a block has one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from kvfold.export.model.model_config import NormPlacement


class RMSNorm(nn.Module):
    """RMSNorm with a learned weight (arXiv 1910.07467)."""

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        return functional.rms_norm(x, self.weight.shape, self.weight, self.epsilon)


@dataclass(frozen=True)
class BlockNorms:
    """Hugging Face's names of a block's norms around its two parts; None where there is none.

    Attributes:
        attention_input, mlp_input: norms of what the part reads.
        attention_output, mlp_output: norms of what it adds to the residual stream.
    """

    attention_input: str | None
    attention_output: str | None
    mlp_input: str | None
    mlp_output: str | None

    @property
    def present(self) -> tuple[str, ...]:
        """Names of those that are there."""
        return tuple(name for name in astuple(self) if name is not None)


BLOCK_NORMS: Mapping[NormPlacement, BlockNorms] = {
    "pre": BlockNorms("input_layernorm", None, "post_attention_layernorm", None),
    "post": BlockNorms(None, "post_attention_layernorm", None, "post_feedforward_layernorm"),
    "both": BlockNorms(
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ),
}

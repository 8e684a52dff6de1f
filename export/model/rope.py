"""RoPE tables (arXiv 2104.09864): cos and sin per position and frequency, in float32."""

from __future__ import annotations

from collections.abc import Sequence
from math import pi

import torch
from torch import Tensor

from kvfold.export.model.model_config import LinearRope, Llama3Rope, ModelConfig


def rope_tables(config: ModelConfig, length: int | None = None) -> tuple[Tensor, Tensor]:
    """cos and sin, each [length, head_dim / 2]; length defaults to the model's context."""
    length = length or config.max_position_embeddings
    angles = torch.outer(torch.arange(length, dtype=torch.float32), inverse_frequencies(config))
    return angles.cos(), angles.sin()


def select_slots(table: Tensor, slots: Sequence[int] | None) -> Tensor:
    """Columns of a table [length, head_dim / 2] for the channel pairs of a bank (`LayerPlan.rope_slots`)."""
    return table if slots is None else table[:, list(slots)]


def inverse_frequencies(config: ModelConfig) -> Tensor:
    """Radians per position of each channel pair, [head_dim / 2]."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    frequencies = 1.0 / config.rope_theta**exponents
    match config.rope_scaling:
        case None:
            return frequencies
        case LinearRope(factor=factor):
            return frequencies / factor
        case Llama3Rope() as scaling:
            return _llama3(frequencies, scaling)


def _llama3(frequencies: Tensor, scaling: Llama3Rope) -> Tensor:
    """The ramp of Llama 3.1 (as in its published reference code), by wavelength in tokens."""
    turns = scaling.original_max_position_embeddings * frequencies / (2 * pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    kept = ((turns - scaling.low_freq_factor) / span).clamp(0, 1)
    return kept * frequencies + (1 - kept) * frequencies / scaling.factor

"""RoPE tables (arXiv 2104.09864): cos and sin per position and channel pair, in float32."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor, log, pi

import torch
from torch import Tensor
from torch.nn import functional

from kvfold.export.model.model_config import ModelConfig
from kvfold.export.model.rope_config import LinearRope, Llama3Rope, LongRope, Rope, YarnRope
from kvfold.plugins.contract.fold_plan import FoldPlan


def rope_tables(config: ModelConfig, rope: Rope, length: int | None = None) -> tuple[Tensor, Tensor]:
    """cos and sin, each [length, head_dim / 2]; length defaults to the model's context.

    Pairs that turn are multiplied with the scaling's attention factor; those that do not have cos 1, sin 0.
    """
    length = length or config.max_position_embeddings
    angles = torch.outer(torch.arange(length, dtype=torch.float32), inverse_frequencies(config, rope))
    sizes = _magnitudes(config, rope)
    return angles.cos() * sizes, angles.sin() * sizes


def select_slots(table: Tensor, slots: Sequence[int] | None) -> Tensor:
    """Columns of a table [length, head_dim / 2] for the channel pairs of a bank (`LayerPlan.rope_slots`)."""
    return table if slots is None else table[:, list(slots)]


def inverse_frequencies(config: ModelConfig, rope: Rope) -> Tensor:
    """Radians per position of each channel pair, [head_dim / 2]; 0 where a pair does not turn."""
    size = rope.rotary_dim(config.head_dim)
    exponents = torch.arange(0, size, 2, dtype=torch.float32) / max(size, 1)
    plain = 1.0 / rope.theta**exponents
    match rope.scaling:
        case None:
            turning = plain
        case LinearRope(factor=factor):
            turning = plain / factor
        case Llama3Rope() as scaling:
            turning = _llama3(plain, scaling)
        case YarnRope() as scaling:
            turning = _yarn(plain, rope.theta, scaling)
        case LongRope() as scaling:
            divisors = torch.tensor(scaling.divisors(config.max_position_embeddings), dtype=torch.float32)
            turning = 1.0 / (divisors * rope.theta**exponents)
    return functional.pad(turning, (0, config.head_dim // 2 - size // 2))


def magnitudes(config: ModelConfig, plan: FoldPlan, layer: int) -> Tensor:
    """How much longer RoPE makes each channel pair of the keys (and queries) of a layer, [head_dim / 2]."""
    sizes = _magnitudes(config, config.ropes[config.layer_ropes[layer]])
    return select_slots(sizes[None], plan.layers[layer].rope_slots)[0]


def _magnitudes(config: ModelConfig, rope: Rope) -> Tensor:
    match rope.scaling:
        case YarnRope() as scaling:
            factor = scaling.magnitude
        case LongRope() as scaling:
            factor = scaling.magnitude(config.max_position_embeddings)
        case _:
            factor = 1.0
    turning = torch.arange(config.head_dim // 2) < rope.rotary_dim(config.head_dim) // 2
    return torch.where(turning, factor, 1.0)


def _llama3(frequencies: Tensor, scaling: Llama3Rope) -> Tensor:
    """The ramp of Llama 3.1 (as in its published reference code), by wavelength in tokens."""
    turns = scaling.original_max_position_embeddings * frequencies / (2 * pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    kept = ((turns - scaling.low_freq_factor) / span).clamp(0, 1)
    return kept * frequencies + (1 - kept) * frequencies / scaling.factor


def _yarn(frequencies: Tensor, theta: float, scaling: YarnRope) -> Tensor:
    """YaRN's ramp, by channel pair: it starts where pairs turn `beta_fast` times in the original context."""
    size = 2 * len(frequencies)

    def pair_that_turns(times: float) -> float:
        context = scaling.original_max_position_embeddings
        return size * log(context / (times * 2 * pi)) / (2 * log(theta))

    first, last = pair_that_turns(scaling.beta_fast), pair_that_turns(scaling.beta_slow)
    if scaling.truncate:
        first, last = floor(first), ceil(last)
    first, last = max(first, 0), min(last, size - 1)
    ramp = (torch.arange(len(frequencies)) - first) / ((last - first) or 0.001)
    divided = ramp.clamp(0, 1)
    return frequencies / scaling.factor * divided + frequencies * (1 - divided)

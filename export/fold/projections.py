"""Read and write attention projections as heads, with the bias as one more input column."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

import torch
from torch import Tensor


def read_heads(weights: Mapping[str, Tensor], layer: int, projection: str, head_dim: int) -> Tensor:
    """Projection `q_proj`, `k_proj` or `v_proj` as float64 [heads, head_dim, inputs (+ 1 with a bias)]."""
    name = f"model.layers.{layer}.self_attn.{projection}"
    weight = weights[f"{name}.weight"].double()
    if f"{name}.bias" in weights:
        weight = torch.cat([weight, weights[f"{name}.bias"].double()[:, None]], dim=1)
    return weight.reshape(-1, head_dim, weight.shape[1])


def write_heads(weights: MutableMapping[str, Tensor], layer: int, projection: str, heads: Tensor) -> None:
    """Inverse of `read_heads`; the layer keeps its bias where it had one."""
    name = f"model.layers.{layer}.self_attn.{projection}"
    rows = heads.flatten(0, 1).float()
    if f"{name}.bias" in weights:
        weights[f"{name}.bias"] = rows[:, -1].contiguous()
        rows = rows[:, :-1]
    weights[f"{name}.weight"] = rows.contiguous()


def read_output(weights: Mapping[str, Tensor], layer: int, head_dim: int) -> Tensor:
    """W_O by query head, float64 [heads, hidden_size, head_dim]."""
    weight = weights[f"model.layers.{layer}.self_attn.o_proj.weight"].double()
    return weight.reshape(weight.shape[0], -1, head_dim).transpose(0, 1)


def write_output(weights: MutableMapping[str, Tensor], layer: int, weight: Tensor) -> None:
    """Replace W_O by weight [hidden_size, heads * head_dim]."""
    weights[f"model.layers.{layer}.self_attn.o_proj.weight"] = weight.float().contiguous()

"""One key for several heads: a complex scalar per RoPE frequency and head.

RoPE turns channel pair (i, i + d / 2) by an angle that depends on the position only. Read as one
complex number, the pair is multiplied by e^(i angle), which commutes with every complex factor.
So keys may be mixed across heads (and across layers) per frequency, before RoPE, and the factor
moves into the query: Re(conj(q) c k) = Re(conj(conj(c) q) k). The result is a stock attention layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class KeyFactors:
    """Rank-one model z_m ~ factors_m * k, k = sum_m projection_m * z_m, per frequency.

    Attributes:
        projection: complex [members, head_dim / 2].
        factors: complex [members, head_dim / 2].
    """

    projection: Tensor
    factors: Tensor


def complex_from_halves(x: Tensor) -> Tensor:
    """Complex [..., d / 2, n] of rows in the half-split RoPE layout [..., d, n]."""
    first, second = x.chunk(2, dim=-2)
    return torch.complex(first, second)


def halves_from_complex(x: Tensor) -> Tensor:
    """Inverse of `complex_from_halves`."""
    return torch.cat([x.real, x.imag], dim=-2)


def fit_keys(second_moment: Tensor, query_power: Tensor) -> KeyFactors:
    """Best shared key of several heads in the logits' metric.

    Minimises sum_m D_m E|z_m - factors_m k|^2 per frequency: k is the principal component of
    D^1/2 z. Scaled so that the members' D-weighted mean |factor|^2 is 1, and turned so that the
    heaviest member's factor is real: eigenvectors have no phase of their own.

    Args:
        second_moment: E[z z^H], complex [head_dim / 2, members, members].
        query_power: D, the sum of E|q|^2 over each member's query heads, [members, head_dim / 2].
    """
    weight = query_power.double().clamp_min(1e-12 * query_power.max()).sqrt().T
    weighted = weight[:, :, None] * second_moment.to(torch.complex128) * weight[:, None, :]
    top = torch.linalg.eigh(weighted).eigenvectors[..., -1]
    heaviest = top.gather(1, top.abs().argmax(1, keepdim=True))
    top = top * (heaviest.abs() / heaviest)
    size = weight.square().sum(1, keepdim=True).sqrt()
    return KeyFactors(projection=(top.conj() * weight / size).T, factors=(top / weight * size).T)


def scale_queries(weight: Tensor, factors: Tensor) -> Tensor:
    """Query rows [heads, d, inputs] times conj(factors) [heads, d / 2]."""
    return halves_from_complex(complex_from_halves(weight) * factors.conj()[..., None])

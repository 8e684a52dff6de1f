"""One key for several heads: complex factors per RoPE frequency and head, slots where they pay.

RoPE turns channel pair (i, i + d / 2) by an angle that depends on the position only. Read as one
complex number, the pair is multiplied by e^(i angle), which commutes with every complex factor.
So keys may be mixed across heads (and across layers) per frequency, before RoPE, and the factor
moves into the query: Re(conj(q) c k) = Re(conj(conj(c) q) k). The result is a stock attention layer.

Which frequency a channel pair turns with is the cos/sin table's business, and the table is an input of
the op. So a shared key spends its d / 2 pairs, its *slots*, where they keep most: several on a frequency at
which the heads differ, none on one that hardly moves a logit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class KeySpectrum:
    """Principal components, per frequency, of several heads' keys in the logits' metric, largest first.

    Attributes:
        powers: what each component adds to the logits' power, [head_dim / 2, members].
        vectors: complex [head_dim / 2, members, members], a component a column.
        weights: D^1/2, [head_dim / 2, members].
    """

    powers: Tensor
    vectors: Tensor
    weights: Tensor


@dataclass(frozen=True)
class KeyFactors:
    """The model z_m ~ sum of factors_m * k over the slots of a frequency, k = sum_m projection_m * z_m.

    Attributes:
        projection: complex [members, slots].
        factors: complex [members, slots].
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


def key_spectrum(second_moment: Tensor, query_power: Tensor) -> KeySpectrum:
    """What a shared key can keep, and by which components.

    Args:
        second_moment: E[z z^H], complex [head_dim / 2, members, members].
        query_power: D, the sum of E|q|^2 over each member's query heads, [members, head_dim / 2].
    """
    weights = query_sizes(query_power.double()).T
    weighted = weights[:, :, None] * second_moment.to(torch.complex128) * weights[:, None, :]
    powers, vectors = torch.linalg.eigh(weighted)
    return KeySpectrum(powers.flip(-1), vectors.flip(-1), weights)


def query_sizes(power: Tensor) -> Tensor:
    """Square roots of the power of queries, a little everywhere; where no query moves, all count alike."""
    return power.clamp_min(1e-12 * float(power.max()) or 1.0).sqrt()


def choose_slots(spectra: Sequence[KeySpectrum]) -> tuple[int, ...]:
    """The frequency of each slot, growing, so that most power is kept; all heads of a bank turn alike."""
    powers = torch.stack([spectrum.powers for spectrum in spectra]).sum(0)
    pairs, members = powers.shape
    kept = powers.flatten().topk(pairs).indices
    return tuple((kept // members).sort().values.tolist())


def fit_keys(spectrum: KeySpectrum, slots: Sequence[int]) -> KeyFactors:
    """Best shared key of several heads in the logits' metric, given the slots' frequencies.

    Minimises sum_m D_m E|z_m - sum of factors_m k|^2 per frequency: its slots are the leading principal
    components of D^1/2 z. Scaled so that the members' D-weighted mean |factor|^2 is 1, and turned so that
    the heaviest member's factor is real: eigenvectors have no phase of their own.
    """
    components = [list(slots[:index]).count(frequency) for index, frequency in enumerate(slots)]
    weight = spectrum.weights[list(slots)]
    top = spectrum.vectors[list(slots), :, components]
    heaviest = top.gather(1, top.abs().argmax(1, keepdim=True))
    top = top * (heaviest.abs() / heaviest)
    size = weight.square().sum(1, keepdim=True).sqrt()
    return KeyFactors(projection=(top.conj() * weight / size).T, factors=(top / weight * size).T)


def scale_queries(weight: Tensor, factors: Tensor, slots: Sequence[int]) -> Tensor:
    """Query rows [heads, d, inputs] at the slots' frequencies times conj(factors) [heads, d / 2]."""
    return halves_from_complex(complex_from_halves(weight)[:, list(slots)] * factors.conj()[..., None])

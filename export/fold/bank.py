"""One stored KV for a whole bank: heads of the producer, and of every layer that reads it.

Merging heads and sharing between layers are one problem. The bank's *members* are the original KV
heads of its layers; each stored head serves r = heads before / heads after of every layer. All
members are regressed from what the producer will read in the folded model, and the best stored
head is the reduced-rank part of that regression, in the metric of its readers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from export.fold.keys import choose_slots, complex_from_halves, fit_keys, halves_from_complex, key_spectrum
from export.fold.values import fit_values


@dataclass(frozen=True)
class BankStatistics:
    """What a bank's fold is computed from; n layers of G original KV heads, i inputs, d = head_dim.

    Attributes:
        keys: predictors of each original key, [n, G, d, i] (float64).
        values: predictors of each original value, [n, G, d, i].
        gram: E[x x^T] of the producer's input, [i, i].
        rotated_mean: E[x e^(i angle)] per RoPE frequency, complex [d / 2, i].
        query_power: sum of E|q|^2 over each original head's query heads, [n, G, d / 2].
        output_metric: sum of W_O,h^T W_O,h over each original head's query heads, [n, G, d, d].
    """

    keys: Tensor
    values: Tensor
    gram: Tensor
    rotated_mean: Tensor
    query_power: Tensor
    output_metric: Tensor


@dataclass(frozen=True)
class FoldedBank:
    """A bank's stored projections and what each layer's queries and output absorb.

    Attributes:
        keys: weights of the stored keys, [stored heads, d, i].
        values: weights of the stored values, [stored heads, d, i].
        slots: the RoPE frequency of each channel pair of the stored keys.
        key_factors: complex [n, G, d / 2], by slot.
        value_factors: [n, G, d, d].
    """

    keys: Tensor
    values: Tensor
    slots: tuple[int, ...]
    key_factors: Tensor
    value_factors: Tensor


def fold_bank(statistics: BankStatistics, stored_heads: int, fit_slots: bool) -> FoldedBank:
    """The best `stored_heads` heads for all members of a bank; slots fitted, or each frequency once."""
    layers, heads, size, inputs = statistics.keys.shape
    members = layers * heads // stored_heads

    def by_stored_head(x: Tensor) -> Tensor:
        split = x.reshape(layers, stored_heads, heads // stored_heads, *x.shape[2:])
        return split.transpose(0, 1).reshape(stored_heads, members, *x.shape[2:])

    def by_layer(x: list[Tensor]) -> Tensor:
        stacked = torch.stack(x).reshape(stored_heads, layers, heads // stored_heads, *x[0].shape[1:])
        return stacked.transpose(0, 1).reshape(layers, heads, *x[0].shape[1:])

    folded_keys, folded_values, key_factors, value_factors = [], [], [], []
    all_keys = complex_from_halves(by_stored_head(statistics.keys))
    all_values = by_stored_head(statistics.values)
    spectra = [
        key_spectrum(key_covariance(keys, statistics.gram, statistics.rotated_mean), power)
        for keys, power in zip(all_keys, by_stored_head(statistics.query_power), strict=True)
    ]
    slots = choose_slots(spectra) if fit_slots else tuple(range(size // 2))
    metrics = by_stored_head(statistics.output_metric)
    for keys, values, spectrum, metric in zip(all_keys, all_values, spectra, metrics, strict=True):
        key = fit_keys(spectrum, slots)
        mixed = (key.projection[..., None] * keys[:, list(slots)]).sum(0)
        folded_keys.append(halves_from_complex(mixed))
        key_factors.append(key.factors)
        stacked = values.reshape(members * size, inputs)
        value = fit_values(stacked @ statistics.gram @ stacked.T, metric)
        folded_values.append((value.projection @ values).sum(0))
        value_factors.append(value.factors)
    return FoldedBank(
        keys=torch.stack(folded_keys),
        values=torch.stack(folded_values),
        slots=slots,
        key_factors=by_layer(key_factors),
        value_factors=by_layer(value_factors),
    )


def key_covariance(keys: Tensor, gram: Tensor, rotated_mean: Tensor) -> Tensor:
    """Covariance of the rotated keys, complex [d / 2, members, members].

    The rotation cancels in E[z z^H] but not in the mean. A constant added to all rotated keys
    changes no softmax, so the mean is taken off: at low frequencies it is most of the power.

    Args:
        keys: complex predictors [members, d / 2, inputs].
        gram: E[x x^T].
        rotated_mean: E[x e^(i angle)], complex [d / 2, inputs].
    """
    second = torch.einsum("mfi,ij,nfj->fmn", keys, gram.to(keys.dtype), keys.conj())
    mean = torch.einsum("mfi,fi->fm", keys, rotated_mean.to(keys.dtype))
    return second - mean[:, :, None] * mean[:, None, :].conj()

"""One stored KV for a whole bank: heads of the producer, and of every layer that reads it.

Merging heads and sharing between layers are one problem. The bank's *members* are the original KV
heads of its layers; each stored head serves r = heads before / heads after of every layer. All
members are regressed from what the producer will read in the folded model, and the best stored
head is the reduced-rank part of that regression, in the metric of its readers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from kvfold.export.fold.keys import (
    KeySpectrum,
    choose_slots,
    complex_from_halves,
    fit_keys,
    halves_from_complex,
    key_spectrum,
    scale_queries,
)
from kvfold.export.fold.values import fit_values


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

    def members(self, stored_heads: int) -> list[Members]:
        """Whom each stored head serves: as many neighbouring heads of every layer."""
        layers, heads = self.keys.shape[:2]

        def split(x: Tensor) -> Tensor:
            by_stored_head = x.reshape(layers, stored_heads, heads // stored_heads, *x.shape[2:])
            return by_stored_head.transpose(0, 1).flatten(1, 2)

        split_parts = (split(x) for x in (self.keys, self.values, self.query_power, self.output_metric))
        return [
            Members(keys, values, self.gram, self.rotated_mean, power, metric)
            for keys, values, power, metric in zip(*split_parts, strict=True)
        ]


@dataclass(frozen=True)
class Members:
    """The m original heads that one stored head serves; all else is as in BankStatistics.

    Attributes:
        keys, values: predictors, [m, d, i].
        query_power: [m, d / 2].
        output_metric: [m, d, d].
    """

    keys: Tensor
    values: Tensor
    gram: Tensor
    rotated_mean: Tensor
    query_power: Tensor
    output_metric: Tensor

    def second_moment(self, predictors: Tensor) -> Tensor:
        """E[y y^T] of the stacked outputs of predictors [m, d, i], [m * d, m * d]."""
        stacked = predictors.flatten(0, 1)
        return stacked @ self.gram @ stacked.T


@dataclass(frozen=True)
class MergedHead:
    """A stored head and what its m members absorb.

    Attributes:
        keys, values: weights of what is stored, [d, i].
        query_factors: what each member's queries are multiplied with, before RoPE, [m, d, d].
        value_factors: what each member's W_O is multiplied with, from the right, [m, d, d].
    """

    keys: Tensor
    values: Tensor
    query_factors: Tensor
    value_factors: Tensor


@dataclass(frozen=True)
class FoldedBank:
    """A bank's stored projections and what each layer's queries and output absorb.

    Attributes:
        keys: weights of the stored keys, [stored heads, d, i].
        values: weights of the stored values, [stored heads, d, i].
        query_factors: [n, G, d, d], as in MergedHead.
        value_factors: [n, G, d, d].
        slots: the RoPE frequency of each channel pair of the stored keys; None is each once.
    """

    keys: Tensor
    values: Tensor
    query_factors: Tensor
    value_factors: Tensor
    slots: tuple[int, ...] | None = None

    @classmethod
    def join(cls, heads: Sequence[MergedHead], layers: int, slots: tuple[int, ...] | None = None) -> Self:
        """The bank of all its stored heads; inverse of `BankStatistics.members`."""

        def by_layer(x: list[Tensor]) -> Tensor:
            stacked = torch.stack(x).reshape(len(x), layers, -1, *x[0].shape[1:])
            return stacked.transpose(0, 1).flatten(1, 2)

        return cls(
            keys=torch.stack([head.keys for head in heads]),
            values=torch.stack([head.values for head in heads]),
            query_factors=by_layer([head.query_factors for head in heads]),
            value_factors=by_layer([head.value_factors for head in heads]),
            slots=slots,
        )


def fold_bank(statistics: BankStatistics, stored_heads: int, fit_slots: bool) -> FoldedBank:
    """The best `stored_heads` heads for all members of a bank; slots fitted, or each frequency once."""
    members = statistics.members(stored_heads)
    spectra = [
        key_spectrum(
            key_covariance(complex_from_halves(head.keys), head.gram, head.rotated_mean), head.query_power
        )
        for head in members
    ]
    slots = choose_slots(spectra) if fit_slots else None
    merged = [_merge(head, spectrum, slots) for head, spectrum in zip(members, spectra, strict=True)]
    return FoldedBank.join(merged, len(statistics.keys), slots)


def _merge(members: Members, spectrum: KeySpectrum, slots: tuple[int, ...] | None) -> MergedHead:
    """The best stored head for its members, given the slots' frequencies."""
    count, size, _ = members.keys.shape
    turning = list(slots or range(size // 2))
    key = fit_keys(spectrum, turning)
    mixed = (key.projection[..., None] * complex_from_halves(members.keys)[:, turning]).sum(0)
    value = fit_values(members.second_moment(members.values), members.output_metric)
    unscaled = torch.eye(size, dtype=members.keys.dtype).expand(count, -1, -1)
    return MergedHead(
        keys=halves_from_complex(mixed),
        values=(value.projection @ members.values).sum(0),
        query_factors=scale_queries(unscaled, key.factors, turning),
        value_factors=value.factors,
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

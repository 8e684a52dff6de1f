"""Other ways to make one KV of several heads: what the field does, for the closed form to be compared with.

Each is a `FoldBank`, so layers are folded in order, on the same text, with the same least squares of
queries and outputs around it. Only how a shared head is made from its members differs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from kvfold.export.fold.bank import BankStatistics, FoldedBank, Members, MergedHead, fold_bank
from kvfold.export.fold.keys import complex_from_halves, halves_from_complex, query_sizes, scale_queries
from kvfold.export.fold.sequential import FoldBank
from kvfold.export.fold.values import fit_values

# Rounds of aligning to the mean and taking it anew; it settles within a few.
ALIGNMENT_ROUNDS = 10


def mean_of_heads(members: Members) -> MergedHead:
    """The mean of the members' projections (GQA, arXiv 2305.13245)."""
    return _unaligned(members, members.keys.mean(0), members.values.mean(0))


def first_head(members: Members) -> MergedHead:
    """One member for all, the first (the GQA paper's second choice)."""
    return _unaligned(members, members.keys[0], members.values[0])


def aligned_mean(members: Members) -> MergedHead:
    """The mean of members turned towards each other first, at the norm that they had (arXiv 2412.20677).

    Keys turn by an angle per RoPE frequency, which the queries undo; values by an orthogonal matrix,
    which W_O undoes. The mean of aligned heads is still shorter than they are: it is scaled back.
    """
    keys, turns = _align(complex_from_halves(members.keys)[:, :, None], members.gram)
    values, rotations = _align(members.values[:, None], members.gram)
    count, size, _ = members.keys.shape
    unscaled = torch.eye(size, dtype=members.keys.dtype).expand(count, -1, -1)
    return MergedHead(
        keys=halves_from_complex(keys[:, 0]),
        values=values[0],
        query_factors=scale_queries(unscaled, turns[:, :, 0, 0], range(size // 2)),
        value_factors=rotations[:, 0],
    )


def joint_pca(members: Members) -> MergedHead:
    """Real principal components of all members' keys together, as if there were no RoPE; our values.

    The query power is the metric, as in the closed form. A matrix that mixes channels does not commute
    with RoPE, so what the queries absorb is exact at a distance of 0 only. Among all bases of the
    components, the one nearest to the heads' own channels is taken, which makes that harm least.
    """
    count, size, _ = members.keys.shape
    sizes = query_sizes(members.query_power)
    weights = torch.cat([sizes, sizes], dim=1)
    weighted = weights[..., None] * members.keys
    vectors = torch.linalg.eigh(members.second_moment(weighted)).eigenvectors
    top = vectors[:, -size:].reshape(count, size, size)
    basis = top @ _nearest_orthogonal((weights[..., None] * top).sum(0)).mT
    value = fit_values(members.second_moment(members.values), members.output_metric)
    return MergedHead(
        keys=(basis.mT @ weighted).sum(0),
        values=(value.projection @ members.values).sum(0),
        query_factors=(basis / weights[..., None]).mT,
        value_factors=value.factors,
    )


def _align(predictors: Tensor, gram: Tensor) -> tuple[Tensor, Tensor]:
    """Generalised Procrustes: the mean of aligned members at their norm, and what turns it into each.

    Args:
        predictors: real or complex [m, blocks, size, i]; every block is aligned by itself.
        gram: E[x x^T] of their input, [i, i].

    Returns:
        The mean [blocks, size, i], and orthogonal (unitary) factors [m, blocks, size, size].
    """
    gram = gram.to(predictors.dtype)
    mean = predictors[0]
    for _ in range(ALIGNMENT_ROUNDS):
        turns = _nearest_orthogonal(predictors @ gram @ mean.mH)
        mean = (turns.mH @ predictors).mean(0)
    size = (_power(predictors, gram).mean(0) / _power(mean, gram).clamp_min(1e-30)).sqrt()
    return mean * size[:, None, None], turns


def _power(predictors: Tensor, gram: Tensor) -> Tensor:
    """E|y|^2 of the outputs of predictors [..., size, i]: real [...]."""
    power: Tensor = ((predictors @ gram) * predictors.conj()).real.sum((-2, -1))
    return power


def _nearest_orthogonal(x: Tensor) -> Tensor:
    """The orthogonal (unitary) matrices nearest to x [..., n, n]: their polar factors."""
    left, _, right = torch.linalg.svd(x)
    nearest: Tensor = left @ right
    return nearest


def _unaligned(members: Members, keys: Tensor, values: Tensor) -> MergedHead:
    """A head that its members read as it is."""
    unscaled = torch.eye(len(keys), dtype=keys.dtype).expand(len(members.keys), -1, -1)
    return MergedHead(keys, values, query_factors=unscaled, value_factors=unscaled)


def _bank_of(
    merge: Callable[[Members], MergedHead], statistics: BankStatistics, stored_heads: int
) -> FoldedBank:
    """A bank whose stored heads are merged one by one, each RoPE frequency once."""
    heads = [merge(members) for members in statistics.members(stored_heads)]
    return FoldedBank.join(heads, len(statistics.keys))


METHODS: Mapping[str, FoldBank] = {
    "fitted-slots": partial(fold_bank, fit_slots=True),
    "even-slots": partial(fold_bank, fit_slots=False),
    "joint-pca": partial(_bank_of, joint_pca),
    "aligned-mean": partial(_bank_of, aligned_mean),
    "mean": partial(_bank_of, mean_of_heads),
    "first-head": partial(_bank_of, first_head),
}

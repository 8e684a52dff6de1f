"""A folded weight as the pretrained one times small factors, plus a change of low rank.

A fold turns W_Q by a complex number per head and RoPE frequency and W_O by a matrix per KV head
(docs/folding.md). Both are of full rank, yet small to store. Where a bank keeps its heads the fold leaves W_K
and W_V as they are, and there are no factors. What is left over, and what healing learns, is stored as
`left @ right`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from kvfold.export.fold.fold import is_folded
from kvfold.export.fold.keys import complex_from_halves, scale_queries
from kvfold.export.model.model_config import ModelConfig
from kvfold.plugins.contract.fold_plan import FoldPlan

FACTORS, LEFT, RIGHT = ":factors", ":left", ":right"
QUERY, OUTPUT = "self_attn.q_proj.weight", "self_attn.o_proj.weight"
KEY_VALUE = ("self_attn.k_proj.weight", "self_attn.v_proj.weight")
# Directions that the text never visits count for this share of the mean power, lest they be lost.
DAMPING = 1e-2
# Of the mean rank, what every change gets and what none exceeds: those of matrices that the fold left as they
# were are zero to begin with, and what it did change has terms to the last.
LEAST_SHARE, MOST_SHARE = 0.25, 2.0
# Of the weight's own norm: what a change of zero starts training with on the right side.
SMALLEST = 1e-2


def is_low_rank(name: str, config: ModelConfig, plan: FoldPlan) -> bool:
    """Whether a trained tensor is stored so: W_Q and W_O, and W_K and W_V where no fold changes them."""
    if name.endswith(KEY_VALUE):
        layer = int(name.split(".")[2])
        return not is_folded(next(bank for bank in plan.banks if bank.layer == layer), config)
    return name.endswith((QUERY, OUTPUT))


def rope_slots(name: str, plan: FoldPlan) -> tuple[int, ...]:
    """RoPE slots of the layer that a tensor belongs to."""
    slots = plan.layers[int(name.split(".")[2])].rope_slots
    return tuple(range(plan.head_dim // 2)) if slots is None else slots


def fit_factors(name: str, base: Tensor, folded: Tensor, config: ModelConfig, plan: FoldPlan) -> Tensor:
    """Least-squares factors of `folded` over `base`, float16.

    W_Q: [heads, head_dim / 2, 2] by slot, real and imaginary part.
    W_O: [KV heads before, head_dim, head_dim].
    W_K, W_V: [0].
    """
    if name.endswith(KEY_VALUE):
        return torch.empty(0, dtype=torch.float16)
    if name.endswith(QUERY):
        before, after = (
            complex_from_halves(x.double().reshape(-1, config.head_dim, x.shape[1])) for x in (base, folded)
        )
        before = before[:, list(rope_slots(name, plan))]
        power = before.abs().square().sum(-1).clamp_min(torch.finfo(torch.float64).tiny)
        # scale_queries multiplies by the conjugate.
        factors = (before * after.conj()).sum(-1) / power
        return torch.view_as_real(factors.resolve_conj()).half()
    before, after = (_output_by_kv_head(x.double(), config).flatten(1, 2) for x in (base, folded))
    solution: Tensor = torch.linalg.lstsq(before, after).solution
    return solution.half()


def anchor(name: str, base: Tensor, factors: Tensor, config: ModelConfig, plan: FoldPlan) -> Tensor:
    """`base` times its factors, in float64 of base's shape: what the low-rank change is added to."""
    base, factors = base.double(), factors.double()
    if name.endswith(KEY_VALUE):
        return base
    if name.endswith(QUERY):
        heads = base.reshape(-1, config.head_dim, base.shape[1])
        turned = scale_queries(heads, torch.view_as_complex(factors), rope_slots(name, plan))
        return turned.reshape(base.shape)
    product = _output_by_kv_head(base, config) @ factors[:, None]
    return product.permute(2, 0, 1, 3).reshape(base.shape)


@dataclass(frozen=True)
class ChangeSpectrum:
    """A change of a weight [out, in] as a sum of rank-one terms, the largest first.

    Attributes:
        left: [out, terms], float32.
        right: [terms, in], float32.
        energies: what each term adds to E|change x|^2, as a share of E|weight x|^2, [terms].
        size: the norm of the weight that is changed.
    """

    left: Tensor
    right: Tensor
    energies: Tensor
    size: float

    def first(self, terms: int) -> ChangeSpectrum:
        """The first terms alone, in memory of their own."""
        left, right, energies = self.left[:, :terms], self.right[:terms], self.energies[:terms]
        return ChangeSpectrum(left.clone(), right.clone(), energies.clone(), self.size)

    def cut(self, rank: int) -> tuple[Tensor, Tensor]:
        """left [out, rank] and right [rank, in] of the first terms; both sides learn at the same pace.

        The weight's size decides how large `right` is where there is no change to begin with; a weight of
        zeros counts as one of size 1.
        """
        left, right = self.left[:, :rank], self.right[:rank]
        smallest = SMALLEST * (self.size or 1.0)
        balance = (left.norm() * right.norm()).clamp_min(smallest).sqrt() / right.norm()
        return left / balance, right * balance


def change_spectrum(weight: Tensor, start: Tensor, gram: Tensor) -> ChangeSpectrum:
    """The change from `start` to `weight` [out, in] in the metric of outputs, gram = E[x x^T].

    Of the weights alone most change lies in directions that the text hardly visits. Where nothing changed,
    the terms are zero and `right` reads the principal components of x, each at unit power: whence the output
    can change most (EVA, arXiv 2410.07170).
    """
    gram, weight = gram.double(), weight.double()
    damping = DAMPING * gram.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny)
    power, components = torch.linalg.eigh(gram + damping * torch.eye(len(gram), dtype=torch.float64))
    power, components = power.flip(0), components.flip(1)
    root = components * power.sqrt()
    u, s, v = torch.linalg.svd((weight - start.double()) @ root, full_matrices=False)
    if not s.any():
        v = torch.eye(*v.shape, dtype=torch.float64)
    right = v @ (components / power.sqrt()).T
    whole = (weight @ root).square().sum().clamp_min(torch.finfo(torch.float32).tiny)
    return ChangeSpectrum((u * s).float(), right.float(), s.square() / whole, float(weight.norm()))


def most_terms(mean_rank: int) -> int:
    """How many terms a change may get where `mean_rank` is the mean."""
    return round(MOST_SHARE * mean_rank)


def share_ranks(energies: Mapping[str, Tensor], mean_rank: int) -> dict[str, int]:
    """Ranks of several changes, `mean_rank` in the mean: some for each, the rest to the largest terms."""
    least, most = round(LEAST_SHARE * mean_rank), most_terms(mean_rank)
    ranks = {name: min(least, len(terms)) for name, terms in energies.items()}
    spare = mean_rank * len(energies) - sum(ranks.values())
    terms = sorted(
        (-float(energy), term, name)
        for name in energies
        for term, energy in enumerate(energies[name][ranks[name] : most])
    )
    for _, _, name in terms[: max(0, spare)]:
        ranks[name] += 1
    return ranks


def _output_by_kv_head(weight: Tensor, config: ModelConfig) -> Tensor:
    """W_O [hidden, heads * d] as [KV heads, heads a KV head, hidden, d]."""
    split = weight.reshape(len(weight), config.num_key_value_heads, -1, config.head_dim)
    return split.permute(1, 2, 0, 3)

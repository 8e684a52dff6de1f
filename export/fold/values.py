"""One value for several heads: the best projection in the metric that the layer's output sees.

There is no non-linearity between W_V and W_O, so any B P in between is exact algebra:
W_V <- P W_V and W_O,h <- W_O,h B_m. The covariance of activations decides what is kept, not the
weights alone (CARE, arXiv 2603.17946).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RELATIVE_FLOOR = 1e-8


@dataclass(frozen=True)
class ValueFactors:
    """Rank-d model v_m ~ factors_m c with c = sum_m projection_m v_m.

    Attributes:
        projection: [members, d, d], applied to each member's value.
        factors: [members, d, d].
    """

    projection: Tensor
    factors: Tensor


def fit_values(second_moment: Tensor, metric: Tensor) -> ValueFactors:
    """Best shared value of several heads.

    Minimises sum_m E (v_m - factors_m c)^T S_m (v_m - factors_m c).

    Args:
        second_moment: E[v v^T] of the stacked values, [members * d, members * d].
        metric: S, the sum of W_O,h^T W_O,h over each member's query heads, [members, d, d].
    """
    members, size, _ = metric.shape
    eigenvalues, vectors = torch.linalg.eigh(metric.double())
    # Where no output reads a head, all its channels count alike.
    eigenvalues = eigenvalues.clamp_min(RELATIVE_FLOOR * float(eigenvalues.max()) or 1.0)
    root = (vectors * eigenvalues.sqrt()[:, None]) @ vectors.mT
    inverse_root = (vectors / eigenvalues.sqrt()[:, None]) @ vectors.mT
    blocks = second_moment.double().reshape(members, size, members, size)
    seen = torch.einsum("mab,mbnc,ncd->mand", root, blocks, root)
    vectors = torch.linalg.eigh(seen.reshape(members * size, members * size)).eigenvectors
    top = vectors[:, -size:].reshape(members, size, size)
    return ValueFactors(projection=top.mT @ root, factors=inverse_root @ top)

"""Least squares on streamed moments: the one solver that every fold uses."""

from __future__ import annotations

import torch
from torch import Tensor


class Moments:
    """Streamed sums over tokens of x x^T and x y^T, from which regressions y = W x are solved.

    Each batch is summed in float32 and added to a float64 total, so the sum does not lose small
    terms when the text is long. Memory is (inputs + outputs) * inputs * 8 bytes, whatever the text.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        """Empty sums for x of width `inputs` and y of width `outputs`."""
        self.tokens = 0
        self.target_power = 0.0
        self.gram = torch.zeros(inputs, inputs, dtype=torch.float64)
        self.cross = torch.zeros(inputs, outputs, dtype=torch.float64)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add tokens: x [..., inputs] and y [..., outputs]."""
        x, y = x.flatten(0, -2), y.flatten(0, -2)
        self.tokens += x.shape[0]
        self.target_power += float(y.double().square().sum())
        self.gram += x.T @ x
        self.cross += x.T @ y

    def solve(self, prior: Tensor, ridge: float) -> Tensor:
        """W [outputs, inputs] minimising E|y - W x|^2 + ridge * E|x|^2 / inputs * |W - prior|^2.

        The penalty pulls towards `prior`, not towards zero: directions that the calibration text
        never visits keep their pretrained weights.
        """
        prior = prior.double()
        scale = ridge * float(self.gram.diagonal().mean()) or 1.0  # where x is all zero, W is the prior
        system = self.gram + scale * torch.eye(len(self.gram), dtype=torch.float64)
        update: Tensor = torch.linalg.solve(system, self.cross - self.gram @ prior.T)
        return prior + update.T

    def relative_error(self, weight: Tensor) -> float:
        """sqrt(E|y - W x|^2 / E|y|^2) of weight [outputs, inputs]."""
        weight = weight.double()
        fitted = (weight @ self.gram * weight).sum() - 2 * (weight.T * self.cross).sum()
        return max(0.0, 1 + float(fitted) / self.target_power) ** 0.5 if self.target_power else 0.0


def append_one(x: Tensor) -> Tensor:
    """x [..., n] with a constant last column, so that a bias is one more input weight."""
    return torch.cat([x, x.new_ones(*x.shape[:-1], 1)], dim=-1)

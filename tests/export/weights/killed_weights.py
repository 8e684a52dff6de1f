"""Weights that tell what was read of them, and that end the process, as it were, at a layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor


class KilledError(Exception):
    """The process ends."""


class KilledWeights(Mapping[str, Tensor]):
    """Another's weights, of which those of one layer cannot be read.

    Attributes:
        read: names of tensors that were read.
    """

    def __init__(self, weights: Mapping[str, Tensor], layer: int | None = None) -> None:
        """`layer` is where reading ends; None reads all."""
        self.read: list[str] = []
        self._weights, self._end = weights, f"model.layers.{layer}."

    def __getitem__(self, name: str) -> Tensor:
        if name.startswith(self._end):
            raise KilledError
        self.read.append(name)
        return self._weights[name]

    def __contains__(self, name: object) -> bool:
        return name in self._weights

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

"""Weights that say only what differs from others, which are read when they are asked for."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping, MutableMapping

import torch
from torch import Tensor

from kvfold.plugins.contract.fold_plan import FoldPlan

ROWS, COLUMNS = ":rows", ":columns"


class ChangedWeights(Mapping[str, Tensor]):
    """A model's weights by reference: tensors of its own over those of another; nothing is copied or kept.

    Every access gives float32: what is stored in fewer bits is exact in them.

    Attributes:
        base: the others.
    """

    def __init__(
        self, base: Mapping[str, Tensor], own: Mapping[str, Tensor], dropped: Collection[str] = ()
    ) -> None:
        """`own` stands in for what `base` has of the same name, or is new; `dropped` of base is left out."""
        self.base, self._own, self._dropped = base, own, frozenset(dropped)

    def changes(self, name: str) -> bool:
        """Whether a tensor is another here than in `base`."""
        return name in self._own or name in self._dropped

    def __getitem__(self, name: str) -> Tensor:
        if name in self._own:
            return self._own[name].to(torch.float32)
        if name in self._dropped:
            raise KeyError(name)
        return self.base[name]

    def __contains__(self, name: object) -> bool:
        return name in self._own or (name in self.base and name not in self._dropped)

    def __iter__(self) -> Iterator[str]:
        for name in self.base:
            if name not in self._dropped or name in self._own:
                yield name
        for name in self._own:
            if name not in self.base:
                yield name

    def __len__(self) -> int:
        return sum(1 for _ in self)


class EditedWeights(ChangedWeights, MutableMapping[str, Tensor]):
    """The same while its own tensors are still made; what is set stands in for the base's.

    Attributes:
        own: what was set.
    """

    def __init__(self, base: Mapping[str, Tensor], dropped: Collection[str] = ()) -> None:
        """Nothing changed yet."""
        self.own: dict[str, Tensor] = {}
        super().__init__(base, self.own, dropped)

    def __setitem__(self, name: str, tensor: Tensor) -> None:
        self.own[name] = tensor

    def __delitem__(self, name: str) -> None:
        del self.own[name]

    def take(self, prefix: str) -> dict[str, Tensor]:
        """Its own tensors below a prefix, which it forgets: they are final and kept elsewhere."""
        return {name: self.own.pop(name) for name in list(self.own) if name.startswith(prefix)}


class ScaledWeights(Mapping[str, Tensor]):
    """Others' weights whose rows and columns are multiplied when they are read."""

    def __init__(self, weights: Mapping[str, Tensor], factors: Mapping[str, Tensor]) -> None:
        """`factors` are by tensor: `<name>:rows` [out], `<name>:columns` [in]; a vector has rows alone."""
        self._weights, self._factors = weights, dict(factors)

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._weights[name]
        if (columns := self._factors.get(name + COLUMNS)) is not None:
            tensor = tensor * columns
        if (rows := self._factors.get(name + ROWS)) is not None:
            tensor = tensor * (rows[:, None] if tensor.ndim == 2 else rows)
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self._weights

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def source_of(weights: Mapping[str, Tensor], name: str) -> Mapping[str, Tensor]:
    """The weights that a tensor is read from, below all that leave it as it is."""
    while isinstance(weights, ChangedWeights) and not weights.changes(name):
        weights = weights.base
    return weights


def identity_of(weights: Mapping[str, Tensor]) -> Hashable:
    """Equal for the same weights, also where they were opened twice; others are what they are in memory."""
    identity: Hashable = getattr(weights, "identity", None)
    return id(weights) if identity is None else identity


def dropped_names(plan: FoldPlan) -> set[str]:
    """Tensors of a checkpoint that a plan has no use for: keys and values of consumers."""
    return {
        f"model.layers.{layer}.self_attn.{projection}.{kind}"
        for bank in plan.banks
        for layer in bank.consumers
        for projection in ("k_proj", "v_proj")
        for kind in ("weight", "bias")
    }

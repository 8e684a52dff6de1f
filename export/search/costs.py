"""What is measured of a layer, and what it was found to cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from export.model.config import ModelConfig

LARGEST_GROUP = 3
Kind = Literal["windowed", "bank", "int8"]


class Cost(BaseModel):
    """What a changed model loses, before any healing.

    Attributes:
        kl: mean KL(unfolded || changed) in nat a token of text.
        nll: mean -log p of the answers in nat, the unfolded model has one too; None where nothing was asked.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kl: float
    nll: float | None = None

    def loss(self, unfolded_nll: float) -> float:
        """By how much answers are less likely than the unfolded model's, nat; 0 where nothing was asked."""
        return 0.0 if self.nll is None else max(0.0, self.nll - unfolded_nll)


class Change(NamedTuple):
    """A change of the unfolded model that is measured alone.

    Attributes:
        kind: `windowed`; `bank`: the layers read one KV head; `int8`: the cache's storage.
        layers: ascending; one layer unless it is a bank.
        window: tokens, where it is windowed.
    """

    kind: Kind
    layers: tuple[int, ...]
    window: int | None = None

    @property
    def name(self) -> str:
        """`bank 3 4`, `windowed 3 to 128`."""
        to = [] if self.window is None else ["to", str(self.window)]
        return " ".join([self.kind, *map(str, self.layers), *to])


@dataclass(frozen=True)
class CostTable:
    """The costs of all changes.

    Attributes:
        unfolded_nll: of the answers, nat.
        windowed: by layer and window.
        int8: by layer.
        banks: by the layers that read one KV head; a single layer merely has fewer heads.
    """

    unfolded_nll: float
    windowed: Mapping[tuple[int, int], Cost]
    int8: Mapping[int, Cost]
    banks: Mapping[tuple[int, ...], Cost]


def layer_changes(config: ModelConfig, windows: Sequence[int]) -> Iterator[Change]:
    """Every change that the table holds, by first layer; what the model cannot be folded to is left out."""
    count = config.num_hidden_layers
    for layer in range(count):
        yield from (Change("windowed", (layer,), window) for window in windows)
        yield Change("int8", (layer,))
        for size in range(1, LARGEST_GROUP + 1):
            changes_heads = size > 1 or config.num_key_value_heads > 1
            if layer + size <= count and changes_heads and not config.qk_norm:
                yield Change("bank", tuple(range(layer, layer + size)))


def distant_changes(config: ModelConfig, globals_: frozenset[int]) -> Iterator[Change]:
    """Banks of global layers with others between them."""
    layers = sorted(globals_)
    for size in range(2, LARGEST_GROUP + 1):
        for start in range(len(layers) - size + 1):
            group = tuple(layers[start : start + size])
            if not is_adjacent(group) and not config.qk_norm:
                yield Change("bank", group)


def is_adjacent(layers: tuple[int, ...]) -> bool:
    """Whether no other layer lies between them."""
    return layers[-1] - layers[0] == len(layers) - 1


def make_table(unfolded_nll: float, measured: Mapping[Change, Cost]) -> CostTable:
    """The table of measured changes."""
    return CostTable(
        unfolded_nll=unfolded_nll,
        windowed={(c.layers[0], c.window): cost for c, cost in measured.items() if c.window is not None},
        int8={c.layers[0]: cost for c, cost in measured.items() if c.kind == "int8"},
        banks={c.layers: cost for c, cost in measured.items() if c.kind == "bank"},
    )

"""What is measured of a layer, and what it was found to cost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

from kvfold.export.model.model_config import ModelConfig
from kvfold.plugins.contract.attention_shape import AttentionShape
from kvfold.plugins.contract.record import Record

LARGEST_GROUP = 3
ChangeKind = Literal["windowed", "bank", "int8"]


class Cost(Record):
    """What a changed model loses, before any healing.

    Attributes:
        kl: mean KL(unfolded || changed) in nat a token of text.
        nll: mean -log p of the answers in nat, the unfolded model has one too; None where nothing was asked.
    """

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

    kind: ChangeKind
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
        guessed: those banks that were not measured yet (`guess_bank`).
    """

    unfolded_nll: float
    windowed: Mapping[tuple[int, int], Cost]
    int8: Mapping[int, Cost]
    banks: Mapping[tuple[int, ...], Cost]
    guessed: frozenset[tuple[int, ...]] = frozenset()

    @classmethod
    def of(cls, unfolded_nll: float, measured: Mapping[Change, Cost], others: Iterable[Change] = ()) -> Self:
        """Of measured changes, and of other banks by guess."""
        banks = {c.layers: cost for c, cost in measured.items() if c.kind == "bank"}
        guesses = {c.layers: guess_bank(banks, c.layers) for c in others if c not in measured}
        return cls(
            unfolded_nll=unfolded_nll,
            windowed={(c.layers[0], c.window): cost for c, cost in measured.items() if c.window is not None},
            int8={c.layers[0]: cost for c, cost in measured.items() if c.kind == "int8"},
            banks=banks | guesses,
            guessed=frozenset(guesses),
        )


def layer_changes(config: ModelConfig, windows: Sequence[int]) -> Iterator[Change]:
    """What each layer costs in each way, by first layer; what the model cannot be folded to is left out."""
    for layer, own in enumerate(config.attention_shape.windows):
        yield from (Change("windowed", (layer,), window) for window in shorter_windows(windows, own))
        yield Change("int8", (layer,))
        for size in (1, 2):
            if size > 1 or config.num_key_value_heads > 1:
                yield from _bank(config, tuple(range(layer, layer + size)))


def large_banks(config: ModelConfig) -> Iterator[Change]:
    """Banks of more than two neighbours: slow to measure, and few are worth it (`guess_bank`)."""
    for size in range(3, LARGEST_GROUP + 1):
        for layer in range(config.num_hidden_layers):
            yield from _bank(config, tuple(range(layer, layer + size)))


def distant_changes(config: ModelConfig, globals_: frozenset[int]) -> Iterator[Change]:
    """Banks of global layers with others between them."""
    layers = sorted(globals_)
    for size in range(2, LARGEST_GROUP + 1):
        for start in range(len(layers) - size + 1):
            group = tuple(layers[start : start + size])
            if not is_adjacent(group):
                yield from _bank(config, group)


def _bank(config: ModelConfig, layers: tuple[int, ...]) -> Iterator[Change]:
    """The bank of these layers where the model can have it: there are so many, of one window and one RoPE."""
    shape = config.attention_shape
    if layers[-1] >= config.num_hidden_layers or config.qk_norm:
        return
    if len({(shape.windows[layer], shape.ropes[layer]) for layer in layers}) == 1:
        yield Change("bank", layers)


def shorter_windows(windows: Iterable[int], own: int | None) -> list[int]:
    """Those that show a layer less than its own window does."""
    return [window for window in windows if own is None or window < own]


def shortened_layers(shape: AttentionShape, window: int) -> frozenset[int]:
    """Layers that see further than this window on their own: what it hides may be what answers need."""
    return frozenset(index for index, own in enumerate(shape.windows) if own is None or own > window)


def is_adjacent(layers: tuple[int, ...]) -> bool:
    """Whether no other layer lies between them."""
    return layers[-1] - layers[0] == len(layers) - 1


def guess_bank(banks: Mapping[tuple[int, ...], Cost], layers: tuple[int, ...]) -> Cost:
    """What a bank of three or more costs at least: as much as any two banks that it is made of.

    So it is of SmolLM2, where 26 banks of three cost 1.01 to 2.1 times as much as that (2,048 tokens); a plan
    that does not use such a bank by a guess this low would not use it when it is measured.
    """
    parts = ((layers[:cut], layers[cut:]) for cut in range(1, len(layers)))
    return Cost(kl=max(sum(banks[part].kl for part in pair if part in banks) for pair in parts))

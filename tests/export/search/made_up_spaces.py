"""Spaces of plans with random costs, and targets that some of their plans meet."""

from __future__ import annotations

import random

from kvfold.export.search.choose import smallest_bytes
from kvfold.export.search.costs import Cost, CostTable
from kvfold.export.search.search_settings import SearchSettings
from kvfold.export.search.space import ByteTarget, PlanSpace
from kvfold.plugins.contract.attention_shape import AttentionShape

NLL = 1.0
WINDOWS = (128, 256)


def make_space(seed: int, layers: int = 7, heads: int = 3, lengths: tuple[int, ...] = (2048,)) -> PlanSpace:
    """Random costs, larger for larger banks; now and then a layer that int8 hurts."""
    generator = random.Random(seed)

    def cost(scale: float) -> Cost:
        return Cost(kl=scale * generator.random(), nll=NLL + generator.uniform(-0.2, 2))

    sizes = range(1 if heads > 1 else 2, 4)
    banks = [tuple(range(i, i + size)) for size in sizes for i in range(layers - size + 1)]
    table = CostTable(
        unfolded_nll=NLL,
        windowed={(layer, window): cost(2.56 / window) for layer in range(layers) for window in WINDOWS},
        int8={layer: cost(generator.choice((0.001, 0.001, 0.1))) for layer in range(layers)},
        banks={bank: cost(0.05 * len(bank) ** 2) for bank in banks},
    )
    return PlanSpace(
        shape=AttentionShape(layers, 9, heads, 64),
        table=table,
        settings=SearchSettings(sliding_windows=WINDOWS),
        wide="float32",
        page_size=16,
        lengths=lengths,
    )


def make_targets(space: PlanSpace, globals_: frozenset[int], slack: float) -> list[ByteTarget]:
    """Targets of every length, `slack` times what the smallest plan takes there."""
    smallest = smallest_bytes(space, globals_)
    pairs = zip(space.lengths, smallest, strict=True)
    return [ByteTarget(slack * least / length, length) for length, least in pairs]

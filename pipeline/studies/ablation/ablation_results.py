"""What the ways to merge heads cost, as `report/ablation.json` stores it."""

from __future__ import annotations

from kvfold.pipeline.studies.cost import FoldCost
from kvfold.plugins.contract.record import Record


class Row(Record):
    """One way under the recipe's plan.

    Attributes:
        method: a name of `export.fold.baselines.METHODS`.
        regressed: whether keys, values, queries and W_O were solved by least squares, layer by layer, on
            what the folded model produces; otherwise they are the pretrained ones and the method's algebra.
        cost: of the folded model, in float.
    """

    method: str
    regressed: bool
    cost: FoldCost


class Ablation(Record):
    """All of them.

    Attributes:
        recipe: whose plan and model it is.
        text: where the tokens came from, as a reader is told.
        rows: at least one.
    """

    recipe: str
    text: str
    rows: tuple[Row, ...]

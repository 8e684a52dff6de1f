"""What a search came to."""

from __future__ import annotations

from dataclasses import dataclass

from kvfold.export.search.choose import Candidate, Horizons
from kvfold.export.search.costs import Cost
from kvfold.export.search.space import PlanSpace, Solution
from kvfold.plugins.contract.fold_plan import FoldPlan


@dataclass(frozen=True)
class Found:
    """A plan, and everything that speaks for it.

    Attributes:
        plan: the chosen one.
        solution: its banks, with what they were predicted to cost.
        cost: what it was measured to cost.
        plans: every whole plan that was measured.
        horizons: the globals of the plan; with measured windows, and nothing else folded.
        space: the costs of all changes, and what was allowed.
    """

    plan: FoldPlan
    solution: Solution
    cost: Cost
    plans: tuple[Candidate, ...]
    horizons: Horizons
    space: PlanSpace

"""Retrieval by length and depth: can a subject still say a code that it read long ago?"""

from __future__ import annotations

from collections.abc import Sequence

from kvfold.pipeline.quality.evaluate.answers import ask
from kvfold.pipeline.quality.evaluate.evaluation import RetrievalCell
from kvfold.pipeline.quality.evaluate.haystacks import HaystackCell
from kvfold.pipeline.quality.subjects import Subject, Tick
from kvfold.plugins.contract.fold_plan import FoldPlan


def measure_cell(
    cell: HaystackCell, window: int | None, subjects: Sequence[Subject], tick: Tick
) -> RetrievalCell:
    """Ask every subject the same questions.

    Args:
        cell: the questions.
        window: tokens that a query sees in every layer, itself included; None is all.
        subjects: whom to ask.
        tick: told of every answer: the tokens that were computed.
    """
    distance = max(haystack.distance for haystack in cell.haystacks)
    return RetrievalCell(
        task=cell.task,
        length=cell.length,
        depth=cell.depth,
        distance=distance,
        inside=window is None or distance <= window,
        trials=len(cell.haystacks),
        subjects=ask(subjects, [haystack.question for haystack in cell.haystacks], tick),
    )


def smallest_window(plan: FoldPlan) -> int | None:
    """Tokens that a query sees in every layer, itself included; None where all layers are global."""
    windows = [layer.sliding_window for layer in plan.layers if layer.sliding_window is not None]
    return min(windows, default=None)

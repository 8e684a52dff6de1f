"""All stages, in order: those of every recipe, then each target's, so that engines live side by side."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

from kvfold.pipeline.machine.targets import TARGETS, Target
from kvfold.pipeline.stages import (
    calibration,
    checkpoint,
    evaltext,
    evaluate,
    fold,
    graph,
    heal,
    heldout,
    onnx,
    quantize,
    report,
    training,
    validate,
)
from kvfold.pipeline.workspace.stage import Stage


def _of_target(target: Target) -> Iterator[Stage]:
    """The engine of one target, its validation, what the fold costs on it, and its report."""
    builder = import_module(f"kvfold.pipeline.stages.engine.build_{target.backend}")
    yield from (part.stage(target.name) for part in (builder, validate, evaluate, report))


STAGES: tuple[Stage, ...] = (
    checkpoint.STAGE,
    calibration.STAGE,
    fold.STAGE,
    training.STAGE,
    heal.STAGE,
    quantize.STAGE,
    graph.STAGE,
    onnx.STAGE,
    heldout.STAGE,
    evaltext.STAGE,
    *(stage for target in TARGETS.values() for stage in _of_target(target)),
)

"""Stage `calibration`: token sequences to calibrate on."""

from __future__ import annotations

from kvfold.pipeline.texts.text_stage import text_stage
from kvfold.pipeline.workspace.workspace import CALIBRATION_TOKENS

STAGE = text_stage(
    name="calibration",
    doing="preparing calibration text",
    file=CALIBRATION_TOKENS,
    texts=lambda recipe: {"tokens": recipe.calibration},
    module=__name__,
)

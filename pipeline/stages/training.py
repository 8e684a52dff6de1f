"""Stage `training`: token sequences to heal on; a recipe that trains nothing needs none."""

from __future__ import annotations

from kvfold.pipeline.texts.text_stage import text_stage
from kvfold.pipeline.workspace.workspace import TRAINING_TOKENS

STAGE = text_stage(
    name="training",
    doing="preparing training text",
    file=TRAINING_TOKENS,
    texts=lambda recipe: recipe.training.text if recipe.training else (),
    module=__name__,
)

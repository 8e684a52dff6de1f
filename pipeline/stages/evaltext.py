"""Stage `evaltext`: token sequences to evaluate on."""

from __future__ import annotations

from kvfold.pipeline.texts.text_stage import text_stage
from kvfold.pipeline.workspace.workspace import EVALUATION_TOKENS

STAGE = text_stage(
    name="evaltext",
    doing="preparing text to evaluate on",
    file=EVALUATION_TOKENS,
    texts=lambda recipe: {"tokens": (recipe.evaluate,)},
    module=__name__,
)

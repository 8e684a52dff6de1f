"""Stage `heldout`: token sequences to validate on."""

from __future__ import annotations

from kvfold.pipeline.texts.text_stage import text_stage
from kvfold.pipeline.workspace.workspace import HELDOUT_TOKENS

STAGE = text_stage(
    name="heldout",
    doing="preparing held-out text",
    file=HELDOUT_TOKENS,
    texts=lambda recipe: {"tokens": (recipe.validate_on,)},
    module=__name__,
)

"""Stage `training`: token sequences to heal on; a recipe that trains nothing needs none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvfold.pipeline.texts.text_stage import text_stage
from kvfold.pipeline.workspace.workspace import TRAINING_TOKENS

if TYPE_CHECKING:
    from kvfold.pipeline.recipe.recipe import Recipe
    from kvfold.pipeline.recipe.recipe_sections import Texts

HELD_OUT = "held_out"


def texts(recipe: Recipe) -> dict[str, Texts]:
    """What is trained on, by length, and what a training by the clock is judged by."""
    section = recipe.training
    if section is None:
        return {}
    named: dict[str, Texts] = {}
    for text in sorted(section.text, key=lambda text: text.sequence_length):
        name = f"tokens.{text.sequence_length}"
        named[name] = (*named.get(name, ()), text)
    return named if section.held_out is None else {**named, HELD_OUT: (section.held_out,)}


STAGE = text_stage(
    name="training",
    doing="preparing training text",
    file=TRAINING_TOKENS,
    texts=texts,
    module=__name__,
)

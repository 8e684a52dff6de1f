"""Write a recipe again with another plan: comments, order and all other sections stay as they are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from kvfold.pipeline.recipe.load_recipe import parse_recipe
from kvfold.pipeline.recipe.plan_section import WrittenPlan
from kvfold.pipeline.recipe.recipe import Recipe
from kvfold.plugins.contract.errors import RecipeError
from kvfold.plugins.contract.fold_plan import FoldPlan, LayerPlan
from kvfold.plugins.contract.write_aside import write_aside

DEFAULT_PAGE_SIZE = FoldPlan.model_fields["page_size"].default
Edit = tuple[int, int, str]


def write_recipe(source: Path, recipe: Recipe, plan: FoldPlan, why: str, output: Path) -> None:
    """Write the text of `source`, which `recipe` was read from, with `plan` and a comment that says why.

    Relative paths are made to hold from the output's folder.

    Raises:
        RecipeError: the plan cannot be replaced in place.
    """
    text = source.read_text(encoding="utf-8")
    root = yaml.compose(text)
    resolved = recipe.model_dump(mode="json", by_alias=True)
    # A set, since an alias leads to its anchor's text once more.
    edits = {*_moved_paths(root, resolved, output.resolve().parent), _plan_edit(text, root, plan, why)}
    for start, end, replacement in sorted(edits, reverse=True):
        text = text[:start] + replacement + text[end:]
    if not _reads_as(text, output, recipe, plan):
        raise RecipeError(
            f"the plan of {source} cannot be replaced in place; write it without anchors and aliases"
        )
    write_aside(output, lambda path: path.write_text(text, encoding="utf-8"))


def _reads_as(text: str, path: Path, recipe: Recipe, plan: FoldPlan) -> bool:
    """Whether a text in the file `path` is the recipe with that plan."""
    try:
        found = parse_recipe(text, path)
    except RecipeError:
        return False
    written = WrittenPlan(page_size=plan.page_size, layers=plan.layers)
    return found == recipe.model_copy(update={"name": found.name, "plan": written})


def _plan_text(plan: FoldPlan, why: str) -> str:
    """`plan: {layers: [...]}`, a layer a line."""
    pages = "" if plan.page_size == DEFAULT_PAGE_SIZE else f"page_size: {plan.page_size}, "
    lines = [f"  {{{_layer_text(layer)}}},  # {index}" for index, layer in enumerate(plan.layers)]
    return "\n".join([f"plan: {{{pages}layers: [  # {why}", *lines, "  ]}"])


def _layer_text(layer: LayerPlan) -> str:
    return ", ".join(f"{name}: {value}" for name, value in layer.model_dump(exclude_defaults=True).items())


def _plan_edit(text: str, root: Any, plan: FoldPlan, why: str) -> Edit:
    """From the key to the end of its value; blank lines and comments behind a block stay."""
    key, value = next((key, value) for key, value in root.value if key.value == "plan")
    start, end = key.start_mark.index, value.end_mark.index
    lines = text[start:end].splitlines(keepends=True)
    while lines and (not lines[-1].strip() or lines[-1].startswith("#")):
        end -= len(lines.pop())
    ending = "\n" if lines and lines[-1].endswith("\n") else ""
    return start, end, _plan_text(plan, why) + ending


def _moved_paths(node: Any, resolved: Any, folder: Path) -> Iterator[Edit]:
    """Scalars that loading the recipe resolved to a path: replaced by that path from `folder`."""
    if isinstance(resolved, list):  # a single text may stand without its list
        parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
        for part, value in zip(parts, resolved, strict=True):
            yield from _moved_paths(part, value, folder)
    elif isinstance(node, yaml.MappingNode) and isinstance(resolved, dict):
        for key, value in node.value:
            if key.value != "plan":
                yield from _moved_paths(value, resolved.get(key.value), folder)
    elif isinstance(node, yaml.ScalarNode) and isinstance(resolved, str) and node.value != resolved:
        relative = os.path.relpath(resolved, folder)
        yield node.start_mark.index, node.end_mark.index, yaml.safe_dump(relative).split("\n")[0]

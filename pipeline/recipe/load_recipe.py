"""Read a recipe: find its file, check it against the schema, make its paths absolute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic import ValidationError as PydanticValidationError

from kvfold.pipeline.machine.targets import TARGETS
from kvfold.pipeline.recipe.evaluate_section import SHIPPED_PASSAGES
from kvfold.pipeline.recipe.recipe import DEMO_MODEL, AdapterSection, HealSection, Recipe
from kvfold.pipeline.recipe.recipe_errors import describe_recipe_errors
from kvfold.pipeline.recipe.recipe_files import SHIPPED, find_recipe
from kvfold.pipeline.recipe.recipe_sections import KEYWORDS, Texts, TextSection
from kvfold.plugins.contract.errors import RecipeError


def load_recipe(name: str, target: str | None = None, architectures: tuple[int, ...] = ()) -> Recipe:
    """Read and validate a recipe given by path or by shipped name.

    Args:
        name: path or shipped name.
        target: in place of the recipe's own.
        architectures: in place of those in the target's section of the recipe.

    Raises:
        RecipeError: not found, not YAML, an unknown key, or a value out of range; each problem is
            named by its key, with the value given.
    """
    path = find_recipe(name)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} cannot be read as text: {error}") from error
    return parse_recipe(text, path, target, architectures)


def parse_recipe(
    text: str, path: Path, target: str | None = None, architectures: tuple[int, ...] = ()
) -> Recipe:
    """`load_recipe` of a text that stands, or is to stand, in the file `path`."""
    try:
        content = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that no calendar has
        raise RecipeError(f"{path} cannot be read as YAML: {error}") from error
    if not isinstance(content, dict):
        raise RecipeError(
            f"{path} holds {type(content).__name__}, not sections; see {SHIPPED / 'horizon.yaml'}"
        )
    if "name" in content:
        raise RecipeError(f"{path}: name: a recipe is named by its file, {path.stem!r}; remove the key")
    try:
        recipe = Recipe.model_validate(_override({**content, "name": path.stem}, target, architectures))
    except PydanticValidationError as error:
        raise RecipeError(describe_recipe_errors(str(path), error, Recipe)) from error
    if architectures and not TARGETS[recipe.target].takes_architectures:
        takers = " or ".join(target.name for target in TARGETS.values() if target.takes_architectures)
        raise RecipeError(
            f"--sm is for the target {takers}, this one is {recipe.target}: add --target {takers}, "
            "or leave --sm out"
        )
    return _resolve_paths(recipe, path.resolve().parent)


class _Loader(yaml.SafeLoader):
    """The safe loader, but a key that stands twice is an error where YAML would forget the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping whose keys differ."""
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                problem = f"the key {key.value!r} stands twice; remove one"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _override(content: dict[str, Any], target: str | None, architectures: tuple[int, ...]) -> dict[str, Any]:
    if target is not None:
        content["target"] = target
    named = TARGETS.get(str(content.get("target")))
    section = content.get(named.backend) or {} if named and named.takes_architectures else None
    if named and architectures and isinstance(section, dict):
        content[named.backend] = {**section, "architectures": list(architectures)}
    return content


def _resolve_paths(recipe: Recipe, folder: Path) -> Recipe:
    """Paths relative to the recipe's folder become absolute; keywords and hub ids stay."""
    source = recipe.model.source
    if source != DEMO_MODEL and (found := _join(folder, source)).exists():
        source = str(found)
    last_words = recipe.evaluate.last_words
    if last_words != SHIPPED_PASSAGES:
        last_words = _resolve_file(last_words, "evaluate.last_words", folder, SHIPPED_PASSAGES)
    evaluate = _resolve_text(recipe.evaluate, "evaluate", folder)
    return recipe.model_copy(
        update={
            "model": recipe.model.model_copy(update={"source": source}),
            "calibration": _resolve_texts(recipe.calibration, "calibration", folder),
            "validate_on": _resolve_text(recipe.validate_on, "validate", folder),
            "heal": _resolve_heal(recipe.heal, folder),
            "evaluate": evaluate.model_copy(update={"last_words": last_words}),
            "search": recipe.search.model_copy(
                update={"text": _resolve_text(recipe.search.text, "search.text", folder)}
            ),
        }
    )


def _resolve_heal(section: HealSection | AdapterSection | None, folder: Path) -> BaseModel | None:
    if isinstance(section, HealSection):
        start = section.start and _resolve_adapter(section.start, "heal.start", folder)
        text = _resolve_texts(section.text, "heal.text", folder)
        held_out = section.held_out and _resolve_text(section.held_out, "heal.held_out", folder)
        return section.model_copy(update={"start": start, "text": text, "held_out": held_out})
    if isinstance(section, AdapterSection):
        adapter = _resolve_adapter(section.adapter, "heal.adapter", folder)
        return section.model_copy(update={"adapter": adapter})
    return None


def _resolve_adapter(name: str, key: str, folder: Path) -> str:
    path = _join(folder, name)
    if not path.is_file():
        raise RecipeError(
            f"{key}: there is no file {path}; give the adapter.safetensors of a healed bundle "
            "(relative to the recipe's folder)"
        )
    return str(path)


def _resolve_texts(sections: Texts, key: str, folder: Path) -> Texts:
    return tuple(_resolve_text(section, key, folder) for section in sections)


def _resolve_text(section: TextSection, key: str, folder: Path) -> TextSection:
    if section.source in KEYWORDS:
        return section
    path = _resolve_file(section.source, f"{key}.source", folder, *KEYWORDS)
    return section.model_copy(update={"source": path})


def _resolve_file(name: str, key: str, folder: Path, *keywords: str) -> str:
    path = _join(folder, name)
    if not path.is_file():
        raise RecipeError(
            f"{key}: there is no file {path}; give a .txt or .jsonl file "
            f"(relative to the recipe's folder) or {' or '.join(map(repr, keywords))}"
        )
    return str(path)


def _join(folder: Path, name: str) -> Path:
    """Absolute; `~` is the user's home."""
    try:
        return (folder / Path(name).expanduser()).resolve()
    except RuntimeError as error:
        raise RecipeError(f"{name} names a user whose home is not known; write the path out") from error

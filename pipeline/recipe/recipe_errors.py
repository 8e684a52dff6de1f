"""Turn pydantic's findings about a recipe into lines a person can act on."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel
from pydantic import ValidationError as PydanticValidationError


def describe_recipe_errors(path: str, error: PydanticValidationError, recipe: type[BaseModel]) -> str:
    """One line per problem: the key's path, what is wrong, the value, and the nearest known key."""
    lines = [f"{path} is not a valid recipe:"]
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"]) or "recipe"
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = f"unknown key; {_suggest(item['loc'], recipe)}"
        elif item["type"] == "missing":
            message = "is required; add it"
        elif not isinstance(item["input"], dict):
            message = f"{message} (given: {item['input']!r:.80})"
        lines.append(f"  {where}: {message}")
    return "\n".join(lines)


def _suggest(location: tuple[int | str, ...], recipe: type[BaseModel]) -> str:
    """The nearest key of the same section, or all of them."""
    known = list(_keys(recipe))
    if len(location) > 1:
        section = next(f for name, f in recipe.model_fields.items() if (f.alias or name) == location[0])
        known = list(_nested_keys(section.annotation))
    near = get_close_matches(str(location[-1]), known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(known)}"


def _keys(model: type[BaseModel]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield field.alias or name


def _nested_keys(annotation: Any) -> Iterator[str]:
    """Keys of every model inside an annotation such as `Preset | WrittenPlan`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield from _keys(annotation)
        for field in annotation.model_fields.values():
            yield from _nested_keys(field.annotation)
    for inner in get_args(annotation):
        yield from _nested_keys(inner)

"""Turn pydantic's findings about a recipe into lines a person can act on."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel
from pydantic import ValidationError as PydanticValidationError
from pydantic.fields import FieldInfo


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
    models = [recipe]
    for part in location[:-1]:
        fields = [field for model in models for name, field in _fields(model) if name == part]
        # A place in a list, a dictionary's key and a union's member are no field.
        models = [model for field in fields for model in _models(field.annotation)] or models
    known = list(dict.fromkeys(name for model in models for name, _ in _fields(model)))
    near = get_close_matches(str(location[-1]), known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(known)}"


def _fields(model: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    return ((field.alias or name, field) for name, field in model.model_fields.items())


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Every model inside an annotation such as `Preset | WrittenPlan`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)

"""Turn pydantic's findings about a recipe into lines a person can act on."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, Tag
from pydantic import ValidationError as PydanticValidationError
from pydantic.fields import FieldInfo

Models = list[tuple[str, type[BaseModel]]]  # each with its tag in a union


def describe_recipe_errors(path: str, error: PydanticValidationError, recipe: type[BaseModel]) -> str:
    """One line per problem: the key's path, what is wrong, the value, and the nearest known key."""
    lines = [f"{path} is not a valid recipe:"]
    for item in error.errors():
        keys, models = _walk(item["loc"], recipe)
        where = ".".join(map(str, keys)) or "recipe"
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = f"unknown key; {_suggest(str(keys[-1]), models)}"
        elif item["type"] == "missing":
            message = "is required; add it"
        elif not isinstance(item["input"], dict):
            message = f"{message} (given: {item['input']!r:.80})"
        lines.append(f"  {where}: {message}")
    return "\n".join(lines)


def _walk(location: tuple[int | str, ...], recipe: type[BaseModel]) -> tuple[list[int | str], Models]:
    """The keys of a place as they stand in the file, and the models that its last key may be of.

    pydantic names the member of a union in between, by its tag, which the file does not.
    """
    keys: list[int | str] = []
    models: Models = [("", recipe)]
    for part in location[:-1]:
        tagged = [(tag, model) for tag, model in models if tag == part]
        if tagged:
            models = [("", model) for _, model in tagged]
            continue
        keys.append(part)
        fields = [field for _, model in models for name, field in _fields(model) if name == part]
        models = [found for field in fields for found in _models(field.annotation)] or models
    return [*keys, *location[-1:]], models


def _suggest(key: str, models: Models) -> str:
    """The nearest key of the same section, or all of them."""
    known = list(dict.fromkeys(name for _, model in models for name, _ in _fields(model)))
    near = get_close_matches(key, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(known)}"


def _fields(model: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    return ((field.alias or name, field) for name, field in model.model_fields.items())


def _models(annotation: Any, tag: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Every model inside an annotation such as `Preset | WrittenPlan`, with its tag where it has one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield tag, annotation
    parts = get_args(annotation)
    tag = next((part.tag for part in parts if isinstance(part, Tag)), tag)
    for inner in parts:
        yield from _models(inner, tag)

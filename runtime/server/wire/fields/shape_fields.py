"""Forms that a reply must have: OpenAI's response_format and text.format, vLLM's structured outputs."""

from __future__ import annotations

from typing import Any

import msgspec

from kvfold.runtime.server.wire.fields.ask import Shape
from kvfold.runtime.server.wire.fields.read_body import describe, wrong


class StructuredOutputs(msgspec.Struct, frozen=True):
    """vLLM's field: one of these."""

    json: dict[str, Any] | str | None = None
    json_object: bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None


class ShapeFields(msgspec.Struct, frozen=True, kw_only=True):
    """Every field of a body that asks for a form; at most one may be there."""

    response_format: dict[str, Any] | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None


def read_shape(fields: ShapeFields) -> Shape | None:
    """The form asked for; raises HttpError 400 for several, or for one that is none."""
    found = [shape for shape in (_format(fields.response_format), *_guided(fields)) if shape is not None]
    if len(found) > 1:
        raise wrong(f"asks for a form of the reply, and so does {found[0].param}; send one", found[1].param)
    return found[0] if found else None


def schema_shape(form: Any, param: str) -> Shape | None:
    """A format whose schema stands beside its type, as in responses and messages; raises HttpError 400."""
    if not isinstance(form, dict):
        raise wrong(f"is {describe(form)}; send an object with a type", param)
    kind = form.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return Shape("json", None, param)
    if kind == "json_schema":
        return Shape(
            "json", _schema(form.get("schema"), f"{param}.schema"), param, form.get("strict") is True
        )
    raise wrong(f"is {describe(kind)}; use text, json_object or json_schema", f"{param}.type")


def _format(form: dict[str, Any] | None) -> Shape | None:
    if form is None:
        return None
    if form.get("type") != "json_schema":
        return schema_shape(form, "response_format")
    param = "response_format.json_schema"
    inner = form.get("json_schema")
    if not isinstance(inner, dict):
        raise wrong(f"is {describe(inner)}; send an object with name and schema", param)
    schema = _schema(inner.get("schema"), f"{param}.schema")
    return Shape("json", schema, "response_format", inner.get("strict") is True)


def _guided(fields: ShapeFields) -> list[Shape | None]:
    one = fields.structured_outputs or StructuredOutputs()
    where = "structured_outputs."
    return [
        _json(one.json, where + "json"),
        Shape("json", None, where + "json_object") if one.json_object else None,
        _plain("regex", one.regex, where + "regex"),
        _plain("choice", one.choice, where + "choice"),
        _plain("grammar", one.grammar, where + "grammar"),
        _json(fields.guided_json, "guided_json"),
        _plain("regex", fields.guided_regex, "guided_regex"),
        _plain("choice", fields.guided_choice, "guided_choice"),
        _plain("grammar", fields.guided_grammar, "guided_grammar"),
    ]


def _plain(kind: Any, value: Any, param: str) -> Shape | None:
    if value is None:
        return None
    if not value:
        raise wrong("is empty; leave it out, or say what the reply may be", param)
    return Shape(kind, value, param)


def _json(value: dict[str, Any] | str | None, param: str) -> Shape | None:
    if value is None:
        return None
    if isinstance(value, str):
        try:
            value = msgspec.json.decode(value)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise wrong(f"is no JSON: {error}; send a JSON Schema", param) from None
    return Shape("json", _schema(value, param), param)


def _schema(value: Any, param: str) -> dict[str, Any]:
    """A schema that is an object; what it says is checked where it is compiled."""
    if not isinstance(value, dict):
        raise wrong(f"is {describe(value)}; send a JSON Schema that is an object", param)
    return value

"""Forms that a reply must have: one field at a time."""

from __future__ import annotations

from typing import Any

import pytest

from kvfold.runtime.server.http import HttpError
from kvfold.runtime.server.wire.chat_request import chat_ask
from kvfold.runtime.server.wire.fields.ask import Shape

SCHEMA = {"type": "object"}


def shape(**fields: Any) -> Shape | None:
    return chat_ask({"messages": [{"role": "user", "content": ""}], **fields}, {})[0].shape


@pytest.mark.parametrize(
    ("fields", "kind", "value"),
    [
        ({"response_format": {"type": "json_object"}}, "json", None),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}}, "json", SCHEMA),
        ({"structured_outputs": {"json": SCHEMA}}, "json", SCHEMA),
        ({"structured_outputs": {"json": '{"type": "object"}'}}, "json", SCHEMA),
        ({"structured_outputs": {"json_object": True}}, "json", None),
        ({"structured_outputs": {"regex": "a+"}}, "regex", "a+"),
        ({"structured_outputs": {"choice": ["a", "b"]}}, "choice", ["a", "b"]),
        ({"structured_outputs": {"grammar": "start: /a/"}}, "grammar", "start: /a/"),
        ({"guided_json": SCHEMA}, "json", SCHEMA),
        ({"guided_regex": "a+"}, "regex", "a+"),
        ({"guided_choice": ["a"]}, "choice", ["a"]),
        ({"guided_grammar": "start: /a/"}, "grammar", "start: /a/"),
    ],
)
def test_a_form_by_any_of_its_names(fields: dict[str, Any], kind: str, value: Any) -> None:
    found = shape(**fields)
    assert found is not None
    assert (found.kind, found.value) == (kind, value)
    assert found.param.split(".")[0] == next(iter(fields))


def test_text_is_no_form() -> None:
    assert shape(response_format={"type": "text"}) is None
    assert shape(response_format=None, structured_outputs={"json_object": False}) is None


def test_two_forms_are_refused() -> None:
    with pytest.raises(HttpError, match=r"structured_outputs\.json asks .* so does response_format"):
        shape(response_format={"type": "json_object"}, structured_outputs={"json": SCHEMA})


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {}}},
            "response_format.json_schema.schema",
        ),
        ({"structured_outputs": {"regex": ""}}, "structured_outputs.regex"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": "[]"}}, "structured_outputs.json"),
        ({"guided_choice": "a"}, "guided_choice"),
    ],
)
def test_a_form_that_is_none_is_refused_by_its_field_s_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(HttpError) as caught:
        shape(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)

"""A thousand documents drawn at random from the masks of schemas: each parses and is valid."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from kvfold.plugins.contract.errors import RequestError
from kvfold.runtime.structured.grammar_limits import MAX_OPTIONAL
from kvfold.runtime.structured.grammar_spec import JsonSchema
from tests.runtime.structured.json_schemas import PERSON, REFUSED, SCHEMAS
from tests.runtime.structured.random_walks import allowed, spell, tiny_bpe, tiny_compiler, walk

DOCUMENTS = 1_000


def documents(schema: Mapping[str, Any], count: int) -> list[str]:
    grammar = tiny_compiler().compile(JsonSchema(schema))
    return [spell(walk(grammar.constraint(), seed, free=seed % 40)) for seed in range(count)]


@pytest.mark.parametrize("name", SCHEMAS)
def test_random_documents_are_valid(name: str) -> None:
    validator = Draft202012Validator(SCHEMAS[name], format_checker=Draft202012Validator.FORMAT_CHECKER)
    for document in documents(SCHEMAS[name], -(-DOCUMENTS // len(SCHEMAS))):
        errors = [error.message for error in validator.iter_errors(json.loads(document))]
        assert errors == [], document


def test_no_schema_means_any_object() -> None:
    grammar = tiny_compiler().compile(JsonSchema())
    for seed in range(20):
        text = spell(walk(grammar.constraint(), seed))
        assert isinstance(json.loads(text), dict)


def test_a_document_is_printed_as_people_print_json() -> None:
    indented = json.dumps({"name": "A", "age": 3, "tags": [], "home": {"zip": "12345"}}, indent=4)
    constraint = tiny_compiler().compile(JsonSchema(PERSON)).constraint()
    for token in tiny_bpe().encode(indented, add_special_tokens=False).ids:
        constraint.accept(token)
    assert constraint.finished


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_enforced_is_refused_by_name(name: str) -> None:
    schema, named = REFUSED[name]
    with pytest.raises(RequestError) as error:
        tiny_compiler().compile(JsonSchema(schema))
    assert named in str(error.value)


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({}, "the top"),
        ({"properties": {"tags": "here"}}, "properties.tags"),
        ({"properties": {"uniqueItems": {}, "a": {"anyOf": [{}, "here"]}}}, "properties.a.anyOf.1"),
        ({"items": {"$ref": "#/$defs/x"}, "$defs": {"x": "here"}}, "$defs.x"),
        ({"enum": [{"uniqueItems": True}], "items": "here"}, "items"),
    ],
)
def test_a_keyword_that_cannot_be_enforced_is_named_with_its_place(schema: Any, place: str) -> None:
    """`here` stands for a list of which no two items are equal."""
    unique = '{"type": "array", "uniqueItems": true}'
    spelled = json.dumps(schema).replace('"here"', unique) if schema else unique
    with pytest.raises(RequestError) as error:
        tiny_compiler().compile(JsonSchema(json.loads(spelled)))
    assert f'["uniqueItems"] at {place};' in str(error.value)


def test_a_schema_that_is_not_strict_says_what_it_ignores() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "format": "iri"}}, "not": {}}
    grammar = tiny_compiler().compile(JsonSchema(schema, strict=False))
    assert sorted(grammar.warnings) == ['Unimplemented keys: ["not"]', "Unknown format: iri"]
    assert tiny_compiler().compile(JsonSchema(SCHEMAS["person"])).warnings == ()


def test_a_stranger_s_schema_cannot_change_how_json_is_written() -> None:
    schema = {"type": "array", "items": {"const": 1}, "minItems": 2, "maxItems": 2}
    options = {"item_separator": ";", "whitespace_pattern": "x", "lenient": True}
    grammar = tiny_compiler().compile(JsonSchema({**schema, "x-guidance": options}))
    for seed in range(10):
        assert json.loads(spell(walk(grammar.constraint(), seed))) == [1, 1]


def test_as_many_properties_as_are_allowed_can_be_left_out() -> None:
    names = [f"p{i}" for i in range(MAX_OPTIONAL + 100)]
    schema = {
        "type": "object",
        "properties": {name: {"type": "null"} for name in names},
        "required": names[:100],
    }
    text = json.dumps(dict.fromkeys([*names[:100], names[150], names[-1]]))
    constraint = tiny_compiler().compile(JsonSchema({**schema, "additionalProperties": False})).constraint()
    for token in tiny_bpe().encode(text, add_special_tokens=False).ids:
        assert token in allowed(constraint)
        constraint.accept(token)
    assert constraint.finished
    with pytest.raises(RequestError, match="201 properties that may be left out"):
        tiny_compiler().compile(JsonSchema({**schema, "required": names[:99]}))

"""JSON schemas of our own, a keyword or two each, and what is refused by name."""

from __future__ import annotations

from typing import Any

TREE = {
    "type": "object",
    "properties": {"value": {"type": "integer"}, "children": {"type": "array", "items": {"$ref": "#"}}},
    "required": ["value"],
    "additionalProperties": False,
}
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "mail": {"type": ["string", "null"], "format": "date"},
        "tags": {"type": "array", "items": {"enum": ["red", "green", 3, None]}, "maxItems": 3},
        "home": {"$ref": "#/$defs/place"},
    },
    "required": ["name", "age", "home"],
    "additionalProperties": False,
    "$defs": {
        "place": {"type": "object", "properties": {"zip": {"pattern": "^[0-9]{5}$"}}, "required": ["zip"]}
    },
}
SCHEMAS: dict[str, dict[str, Any]] = {
    "anything": {},
    "null": {"type": "null"},
    "boolean": {"type": "boolean"},
    "types": {"type": ["boolean", "integer", "null"]},
    "const": {"const": {"a": [1, "e\u0301", None], "b": "<tool_call>"}},
    "enum": {"enum": ["one", 2, [3], {"four": 4.5}, 'naïve "quoted" \\ text', False]},
    "integer": {"type": "integer"},
    "number": {"type": "number"},
    "bounds": {"type": "integer", "minimum": -17, "maximum": 1203},
    "open bounds": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 2.5},
    "multiple": {"type": "integer", "multipleOf": 7, "minimum": 0},
    "string": {"type": "string"},
    "lengths": {"type": "string", "minLength": 2, "maxLength": 5},
    "pattern": {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{2,4}$"},
    "search": {"type": "string", "pattern": "[ab]$", "maxLength": 10},
    "date-time": {"type": "string", "format": "date-time"},
    "uuid": {"type": "string", "format": "uuid"},
    "ipv4": {"type": "string", "format": "ipv4"},
    "array": {"type": "array"},
    "items": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    "tuple": {"type": "array", "prefixItems": [{"type": "integer"}, {"const": "x"}], "items": False},
    "tuple and rest": {"type": "array", "prefixItems": [{"type": "null"}], "items": {"enum": [1, 2]}},
    "object": {"type": "object"},
    "map": {"type": "object", "additionalProperties": {"type": "integer"}},
    "closed": {
        "type": "object",
        "properties": {"a": {"type": "null"}, "b": {"type": "boolean"}},
        "additionalProperties": False,
    },
    "required": {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a", "b"]},
    "patterns": {
        "type": "object",
        "patternProperties": {"^n_": {"type": "integer"}, "^s_": {"maxLength": 3}},
        "additionalProperties": False,
    },
    "one at least": {"type": "object", "additionalProperties": {"type": "boolean"}, "minProperties": 1},
    "two at most": {"type": "object", "additionalProperties": {"type": "boolean"}, "maxProperties": 2},
    "any of": {"anyOf": [{"type": "integer"}, {"type": "string", "maxLength": 2}, {"type": "null"}]},
    "one of": {"oneOf": [{"type": "integer"}, {"type": "string"}]},
    "tagged": {
        "oneOf": [
            {
                "type": "object",
                "properties": {"kind": {"const": kind}, "of": part},
                "required": ["kind", "of"],
            }
            for kind, part in (("a", {"type": "null"}), ("b", {"type": "boolean"}))
        ]
    },
    "all of": {"allOf": [{"type": "integer"}, {"minimum": 3}, {"maximum": 9}]},
    "all of objects": {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
            {"properties": {"b": {"type": "boolean"}}, "required": ["b"]},
        ]
    },
    "reference": {"$ref": "#/$defs/x", "$defs": {"x": {"type": "string", "maxLength": 4}}},
    "escaped reference": {"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"enum": [1, 2]}}},
    "tree": TREE,
    "person": PERSON,
    "unicode keys": {"type": "object", "properties": {"日本": {"const": "語"}}, "required": ["日本"]},
    "deep": {
        "type": "array",
        "items": {"type": "array", "items": {"type": "array", "items": {"type": "null"}}},
    },
}
# A schema and what the refusal names.
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "not": ({"not": {"type": "null"}}, '"not"'),
    "if": ({"if": {"type": "null"}, "then": {}, "else": {}}, '"else", "if", "then"'),
    "contains": ({"contains": {"type": "null"}}, '"contains"'),
    "uniqueItems": ({"uniqueItems": True}, '"uniqueItems"'),
    "propertyNames": ({"propertyNames": {"maxLength": 2}}, '"propertyNames"'),
    "dependentRequired": ({"dependentRequired": {"a": ["b"]}}, '"dependentRequired"'),
    "dependentSchemas": ({"dependentSchemas": {"a": {}}}, '"dependentSchemas"'),
    "unevaluatedProperties": ({"unevaluatedProperties": False}, '"unevaluatedProperties"'),
    "unevaluatedItems": ({"unevaluatedItems": False}, '"unevaluatedItems"'),
    "$dynamicRef": ({"$dynamicRef": "#a"}, '"$dynamicRef"'),
    "overlapping oneOf": ({"oneOf": [{"minimum": 1}, {"maximum": 9}]}, "oneOf"),
    "overlapping patterns": ({"patternProperties": {"a": {}, "b": {}}}, "not disjoint"),
    "unknown format": ({"type": "string", "format": "iri"}, "iri"),
    "remote reference": ({"$ref": "https://example.org/schema"}, "example.org"),
    "unknown type": ({"type": "banana"}, "banana"),
    "nothing fits": ({"type": "string", "minLength": 5, "maxLength": 2}, "minLength (5)"),
    "circle": (
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        "nothing",
    ),
    "look-around": ({"type": "string", "pattern": "(?=a)b"}, "look-ahead"),
    "half a surrogate": ({"const": "\ud800"}, "escape"),
    "no JSON": ({"const": float("nan")}, "no JSON"),
}

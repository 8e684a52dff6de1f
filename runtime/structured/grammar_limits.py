"""What is refused before llguidance sees it: it recurses on nesting, and a stack overflow ends the process.

Its own limits (`FUEL` and `ITEMS`) bound the time of a compile and of a mask; these bound its stack, and the
time of what it does without fuel.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from kvfold.plugins.contract.errors import RequestError

# Bytes of a grammar, or of all its schemas; levels of a schema, and of it with all that it refers to.
MAX_BYTES, MAX_DEPTH, MAX_LEVELS = 256 << 10, 100, 1_000
# Properties of an object that may be left out: each takes four of `ROW`, and time grows with their square.
# Rules and brackets of a Lark grammar.
MAX_OPTIONAL, MAX_RULES = 200, 2_000
# llguidance's own: for a grammar's regexes, a mask's regexes, parser items of a mask, those of one place.
FUEL, STEP_FUEL, ITEMS, ROW = 200_000, 50_000, 20_000, 1_000
# What the limits above may take of the stack: measured, at most 8 KiB a level or rule.
STACK_BYTES = 64 << 20

_RULE = re.compile(r"[:(\[]")


def write_schema(schema: Any) -> str:
    """A schema as JSON.

    Raises:
        RequestError: it is no JSON, or larger than the limits.
    """
    levels = _depth(schema, MAX_DEPTH)
    if levels > MAX_DEPTH:
        raise RequestError(f"the schema is nested deeper than {MAX_DEPTH} levels; make it flatter")
    try:
        text = json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RequestError(f"the schema {schema!r:.80} is no JSON: {error}; send valid JSON") from error
    check_bytes("the schema", len(text))
    targets: dict[int, Any] = {}
    for node in _mappings(schema):
        _check_optional(node)
        reference = node.get("$ref")
        if isinstance(reference, str):
            target = _resolve(schema, reference)
            targets[id(target)] = target
    levels += sum(_depth(target, MAX_DEPTH) for target in targets.values())
    if levels > MAX_LEVELS:
        raise RequestError(
            f"the schema has {levels} levels with the {len(targets)} definitions that it refers to; "
            f"at most {MAX_LEVELS} can be enforced: make it smaller"
        )
    return text


def _check_optional(schema: Mapping[str, Any]) -> None:
    properties, required = schema.get("properties"), schema.get("required")
    if isinstance(properties, Mapping):
        named = {name for name in required if isinstance(name, str)} if isinstance(required, list) else set()
        optional = len(properties.keys() - named)
        if optional > MAX_OPTIONAL:
            raise RequestError(
                f"an object of the schema has {optional} properties that may be left out; "
                f"at most {MAX_OPTIONAL} can be enforced: make some of them required, or split it"
            )


def check_rules(what: str, text: str) -> None:
    """Raises RequestError where a Lark grammar or a regex is larger than the limits."""
    check_bytes(what, len(text))
    rules = len(_RULE.findall(text))
    if rules > MAX_RULES:
        raise RequestError(
            f"{what} has {rules} rules and brackets; at most {MAX_RULES} can be enforced: shorten it"
        )


def check_bytes(what: str, size: int) -> None:
    """Raises RequestError where a text is too long."""
    if size > MAX_BYTES:
        raise RequestError(f"{what} has {size} bytes; at most {MAX_BYTES} can be enforced: make it smaller")


def _depth(value: Any, limit: int) -> int:
    """Levels of nesting, counted no further than one above the limit; without recursion."""
    level, depth = [value], 0
    while level and depth <= limit:
        depth += 1
        level = [inner for outer in level for inner in _children(outer)]
    return depth


def _children(value: Any) -> list[Any]:
    inside = (
        value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    )
    return [item for item in inside if isinstance(item, (Mapping, list, tuple))]


def _mappings(value: Any) -> Iterator[Mapping[str, Any]]:
    rest = [value]
    while rest:
        node = rest.pop()
        if isinstance(node, Mapping):
            yield node
        rest += _children(node)


def _resolve(schema: Any, reference: str) -> Any:
    """What a `#/a/b` points to; the whole schema for what does not resolve, as an upper bound."""
    node = schema
    for part in reference.removeprefix("#").split("/")[1:]:
        if not isinstance(node, Mapping):
            return schema
        node = node.get(part.replace("~1", "/").replace("~0", "~"), schema)
    return node

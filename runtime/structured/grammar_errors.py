"""What llguidance says of a grammar, as one sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

_PLACE = re.compile(r"^at \d+\(\d+\): |\(at \"(?:[^\"\\]|\\.)*\".*\)$")
_UNKNOWN, _KEYWORD = re.compile(r"Unimplemented keys: \[(.*)\]"), re.compile(r'"([$\w]+)"')
# Keywords whose value maps names to schemas, and those whose value is none.
_NAMED = {"properties", "patternProperties", "dependentSchemas", "$defs", "definitions"}
_VALUES = {"enum", "const", "default", "example", "examples"}
_LENGTH = 300
_SENTENCES = {
    "NoExtensionBias": "nothing satisfies it",
    "NoExtension": "nothing satisfies it",
}


def explain_failure(message: str) -> str:
    """Its sentence, without the place in a grammar that was written for the user, and without traces."""
    lines = [line.strip() for line in message.splitlines()]
    cause = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), "")
    sentence = cause or _PLACE.sub("", lines[0] if lines else "").strip()
    sentence = sentence.partition("; following special tokens are available")[0]  # hundreds of them
    return _SENTENCES.get(sentence, sentence)[:_LENGTH] or "it gave no reason"


def find_unknown_keyword(schema: Any, message: str) -> str:
    """Where in a schema the first keyword stands that llguidance does not know; empty where it names none."""
    found = _UNKNOWN.search(message)
    keywords = _KEYWORD.findall(found.group(1)) if found else []
    places = (".".join(place) for place, node in _schemas(schema, ()) if any(key in node for key in keywords))
    return next((place or "the top" for place in places), "")


def _schemas(node: Any, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """All schemas within one, and where they stand."""
    if isinstance(node, list):
        for at, part in enumerate(node):
            yield from _schemas(part, (*place, str(at)))
    if isinstance(node, Mapping):
        yield place, node
        for key, value in node.items():
            if key in _NAMED and isinstance(value, Mapping):
                for name, part in value.items():
                    yield from _schemas(part, (*place, key, name))
            elif key not in _VALUES:
                yield from _schemas(value, (*place, key))

"""What a stream told, whatever the pieces it came in, and when, where and from which cache it was made."""

from __future__ import annotations

import json
from typing import Any

# Of the place and time that a stream was made in, or counts of its pieces.
CHANGING = {"id", "item_id", "created", "created_at", "cached_tokens", "cache_read_input_tokens", "sequence_number"}


def stream_story(body: bytes) -> list[Any]:
    """Its events; texts that follow each other are one, as are lists of log probabilities."""
    told: list[Any] = []
    for block in body.decode().split("\n\n"):
        lines = [line.removeprefix("data: ") for line in block.split("\n") if line.startswith("data: ")]
        if not lines:
            continue
        event = lines[0] if lines[0] == "[DONE]" else _plain(json.loads(lines[0]))
        told.append(event)
        if len(told) > 1 and (merged := _merge(told[-2], event)) is not None:
            told[-2:] = [merged]
    return told


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items() if name not in CHANGING}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def _merge(first: Any, second: Any) -> Any:
    """Two events as one, where they differ in texts alone."""
    if not (isinstance(first, dict) and isinstance(second, dict) and first.keys() == second.keys()):
        return None
    merged: dict[str, Any] = {}
    for name in first:
        one, other = first[name], second[name]
        if name in ("content", "text", "delta", "arguments", "partial_json") and isinstance(one, str):
            merged[name] = one + other if isinstance(other, str) else None
        elif name in ("logprobs", "content") and isinstance(one, list) and isinstance(other, list):
            merged[name] = one + other
        elif isinstance(one, dict):
            merged[name] = _merge(one, other)
        elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other) == 1:
            inner = _merge(one[0], other[0])
            merged[name] = None if inner is None else [inner]
        elif one == other:
            merged[name] = one
            continue
        if merged.get(name) is None:
            return None
    return merged

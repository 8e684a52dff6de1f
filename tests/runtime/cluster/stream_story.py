"""What a stream told, whatever the pieces it came in, and when, where and from which cache it was made."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

# Of the place and time that a stream was made in, or of its pieces.
CHANGING = {
    *("id", "item_id", "created", "created_at", "cached_tokens", "cache_read_input_tokens", "input_tokens"),
    *("sequence_number", "text_offset"),
}
MERGED = {
    *("content", "text", "delta", "arguments", "partial_json"),
    *("logprobs", "tokens", "token_logprobs", "top_logprobs"),
}


def stream_story(body: bytes) -> dict[int, list[Any]]:
    """Events of each reply; texts that follow each other are one, as are lists of log probabilities."""
    told: defaultdict[int, list[Any]] = defaultdict(list)
    for block in body.decode().split("\n\n"):
        lines = [line.removeprefix("data: ") for line in block.split("\n") if line.startswith("data: ")]
        if not lines:
            continue
        event = lines[0] if lines[0] == "[DONE]" else _plain(json.loads(lines[0]))
        choices = event.get("choices") if isinstance(event, dict) else None
        events = told[choices[0]["index"] if choices else 0]
        merged = _merge(events[-1], event) if events else None
        events[-1:] = [*events[-1:], event] if merged is None else [merged]
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
    for name, one in first.items():
        other = second[name]
        if name in MERGED and isinstance(one, str) and isinstance(other, str):
            merged[name] = one + other
        elif name in MERGED and isinstance(one, list) and isinstance(other, list):
            merged[name] = [*one, *other]
        elif isinstance(one, dict) and (inner := _merge(one, other)) is not None:
            merged[name] = inner
        elif name in ("choices", "tool_calls") and len(one) == len(other) == 1:
            inner = _merge(one[0], other[0])
            if inner is None:
                return None
            merged[name] = [inner]
        elif one == other:
            merged[name] = one
        else:
            return None
    return merged

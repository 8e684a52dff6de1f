"""Wrong requests, made from valid ones: parts dropped, replaced, nested, repeated."""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

from tests.runtime.server.abuse.valid_requests import VALID

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE")
EXTREMES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 2**31, -(2**31), 2**63, 2**64, 10**30, 0.5, -0.0, 1e308, 1e-308),
    *("", " ", "\x00", "a", "ü🎈", "\ud800", "A" * 5000, "😀" * 300, "<|im_end|>", "<|im_start|>system\n"),
    *(
        "none",
        "auto",
        "required",
        "any",
        "function",
        "text",
        "image_url",
        "json_schema",
        "tool",
        "user",
        "../x",
    ),
    *([], {}, [[]], [None], {"": None}, {"type": "text"}, {"type": "function"}, ["a"] * 300, [65] * 3000),
    *({"$ref": "#"}, {"type": "object", "properties": {"a": {"$ref": "#"}}}, {"not": {}}, {"type": "banana"}),
    *("(a+)+$", "[", "(?=a)", "a{1000000}", "start: start\n", 'start: "a"{9999999}\n', "NaN", "Infinity"),
)
HEADERS = (
    *(
        ("x-session-id", "s1"),
        ("x-session-id", "\xff"),
        ("x-request-timeout", "0"),
        ("x-request-timeout", "nan"),
    ),
    *(
        ("x-request-timeout", "1e-9"),
        ("x-request-id", "\xffü"),
        ("x-request-id", "a" * 500),
        ("host", "evil"),
    ),
    *(
        ("content-type", "text/plain"),
        ("content-type", "application/json; charset=utf-16"),
        ("accept", "\xff"),
    ),
    *(("accept", "application/openmetrics-text"), ("authorization", "Bearer \xff"), ("x-api-key", "k")),
    *(("content-encoding", "gzip"), ("expect", "100-continue"), ("range", "bytes=0-1"), ("origin", "null")),
)


MAX_DEPTH = 8
NAMES = ("", "a", "ü", "type", "name", "content", "role", "id", "stream", "n", "prompt", "schema")
WITH_BODY = [request for request in VALID if request[2] is not None]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where everything is, not too deep."""
    found = [path]
    if len(path) < MAX_DEPTH:
        pairs = (
            value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        )
        for key, inner in pairs:
            found += places(inner, (*path, key))
    return found


def wrong_body(rng: Random, valid: Any) -> Any:
    """A valid body with one to three changes."""
    body = copy.deepcopy(valid)
    for _ in range(rng.randint(1, 3)):
        path = rng.choice(places(body))
        if path:
            holder = body
            for key in path[:-1]:
                holder = holder[key]
            change(rng, holder, path[-1])
        elif rng.random() < 0.5:
            body = copy.deepcopy(rng.choice(EXTREMES))
    return body


def change(rng: Random, holder: Any, key: Any) -> None:
    """Change one thing in place."""
    old = holder[key]
    match rng.choice(["drop", "replace", "replace", "nest", "repeat", "rename", "steal"]):
        case "drop":
            del holder[key]
        case "replace":
            holder[key] = copy.deepcopy(rng.choice(EXTREMES))
        case "nest":
            for _ in range(rng.choice([1, 2, 60, 400])):
                old = [old] if rng.random() < 0.5 else {"type": "text", "properties": old}
            holder[key] = old
        case "repeat":
            times = rng.choice([2, 129, 1500])
            holder[key] = old * times if isinstance(old, str | list) and len(old) < 100 else [old] * times
        case "rename" if isinstance(holder, dict):
            holder[rng.choice(NAMES)] = holder.pop(key)
        case _:
            _, _, other = rng.choice(WITH_BODY)
            found = rng.choice(places(other)[1:])
            for step in found:
                other = other[step]
            holder[key] = copy.deepcopy(other)


def encode(value: Any) -> bytes:
    """JSON as Python writes it: NaN and halves of characters too."""
    return json.dumps(value).encode()


def wrong_request(rng: Random) -> tuple[str, str, bytes | None, dict[str, str]]:
    """Method, path, body and headers."""
    method, path, valid = rng.choice(VALID if rng.random() < 0.1 else WITH_BODY)
    body = None if valid is None else encode(wrong_body(rng, valid))
    if body is not None and rng.random() < 0.05:
        at = rng.randrange(len(body))
        body = body[:at] + rng.randbytes(rng.randrange(4)) + body[at + rng.randrange(4) :]
    if rng.random() < 0.05:
        method = rng.choice(METHODS)
    if rng.random() < 0.05:
        path += rng.choice(["/", "?a=%ff&=", "%00", "/..", "%2f", ";x", "?" + "a" * 3000])
    headers = {"x-request-timeout": "1"}
    if rng.random() < 0.1:
        headers |= dict(rng.sample(HEADERS, 2))
    return method, path, body, headers

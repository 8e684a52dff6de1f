"""Any JSON in any field of a valid body is served or refused: never an error of the server."""

from __future__ import annotations

import asyncio
import copy
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvfold.runtime.server.http import HttpError
from kvfold.runtime.server.wire.chat_request import chat_ask
from kvfold.runtime.server.wire.completion_request import completion_ask
from kvfold.runtime.server.wire.message_request import count_ask, message_ask
from kvfold.runtime.server.wire.response_request import response_ask
from kvfold.runtime.server.wire.token_requests import detokenize_ask, tokenize_ask
from tests.runtime.server.routes.ask_server import MODEL, Server
from tests.runtime.server.routes.test_tool_calls import CALL, SCHEMA, make_server

USER = {"role": "user", "content": [{"type": "text", "text": "Hi"}]}
TOOL = {"name": "f", "description": "d", "parameters": SCHEMA, "strict": True}
CALLED = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
COMMON = {
    "model": MODEL,
    "temperature": 0.5,
    "top_p": 0.5,
    "stream": False,
    "user": "u",
    "metadata": {"a": "b"},
    "priority": 1,
    "timeout": 5,
}
SAMPLING = {
    **COMMON,
    "frequency_penalty": 0.1,
    "presence_penalty": 0.1,
    "logit_bias": {"1": 1},
    "seed": 1,
    "stop": ["x"],
    "n": 1,
    "max_tokens": 5,
    "top_k": 1,
    "min_p": 0.1,
    "repetition_penalty": 1.1,
    "min_tokens": 1,
    "stop_token_ids": [1],
    "ignore_eos": True,
    "store": True,
    "structured_outputs": None,
    "guided_json": None,
    "guided_regex": None,
    "guided_choice": None,
    "guided_grammar": None,
    "response_format": {"type": "text"},
}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        **SAMPLING,
        "messages": [
            {"role": "system", "content": "s", "name": "n"},
            USER,
            {"role": "assistant", "content": None, "tool_calls": [CALLED], "reasoning_content": "r"},
            {"role": "tool", "content": "7", "tool_call_id": "c"},
        ],
        "logprobs": True,
        "top_logprobs": 1,
        "tools": [{"type": "function", "function": TOOL}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "parallel_tool_calls": True,
        "modalities": ["text"],
        "max_completion_tokens": 5,
        "session_id": "s",
    },
    "/v1/completions": {
        **SAMPLING,
        "prompt": ["a", [1, 2]],
        "echo": True,
        "logprobs": 1,
        "best_of": 1,
        "suffix": "",
    },
    "/v1/responses": {
        **COMMON,
        "input": [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
            {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "r"}]},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "7"}]},
        ],
        "instructions": "i",
        "max_output_tokens": 5,
        "top_logprobs": 1,
        "include": ["message.output_text.logprobs"],
        "store": True,
        "tools": [{"type": "function", **TOOL}],
        "tool_choice": {"type": "function", "name": "f"},
        "parallel_tool_calls": True,
        "text": {"format": {"type": "text"}, "verbosity": "low"},
        "truncation": "disabled",
        "session_id": "s",
    },
    "/v1/messages": {
        "model": MODEL,
        "max_tokens": 5,
        "messages": [
            USER,
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "t", "signature": ""},
                    {"type": "tool_use", "id": "c", "name": "f", "input": {"a": 1}},
                ],
            },
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "7"}]},
        ],
        "system": [{"type": "text", "text": "s"}],
        "stop_sequences": ["x"],
        "stream": False,
        "temperature": 0.5,
        "top_k": 1,
        "top_p": 0.5,
        "metadata": {"user_id": "u"},
        "tools": [{"name": "f", "description": "d", "input_schema": SCHEMA}],
        "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
        "output_config": {"format": None},
    },
    "/tokenize": {
        "model": MODEL,
        "messages": [USER],
        "add_generation_prompt": True,
        "return_token_strs": True,
        "tools": [{"type": "function", "function": TOOL}],
    },
    "/detokenize": {"model": MODEL, "tokens": [1, 2]},
    "/v1/kvfold/sessions": {"session_id": "s"},
}
READERS: dict[str, Any] = {
    "/v1/chat/completions": lambda body: chat_ask(body, {}),
    "/v1/completions": lambda body: completion_ask(body, {}),
    "/v1/responses": lambda body: response_ask(body, {}),
    "/v1/messages": lambda body: (message_ask(body, {}), count_ask(body, {})),
    "/tokenize": lambda body: tokenize_ask(body, {}),
    "/detokenize": lambda body: detokenize_ask(body, {}),
}
WORDS = st.sampled_from(
    ["", "auto", "none", "text", "function", "json_schema", "user", "\x00", "\ud7ff", "<|im_end|>", CALL]
)
NUMBERS = st.one_of(
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0, -1, 1, 2**63, 10**30]),
)
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, WORDS, st.text(max_size=8))
NAMES = st.one_of(
    st.sampled_from(["type", "role", "content", "text", "name", "function", "schema", "format"]),
    st.text(max_size=4),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=3)),
    max_leaves=8,
)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place of a body where something stands."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [*([at] if at else []), *(place for key, item in inner for place in places(item, (*at, key)))]


def put(body: dict[str, Any], place: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """The body with another value at a place."""
    changed = copy.deepcopy(body)
    holder: Any = changed
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value
    return changed


@st.composite
def changed_bodies(draw: st.DrawFn, path: str) -> dict[str, Any]:
    """A body in which one or two values are others."""
    body = BODIES[path]
    for _ in range(draw(st.integers(1, 2))):
        body = put(body, draw(st.sampled_from(places(body))), draw(VALUES))
    return body


@pytest.mark.parametrize("path", BODIES)
def test_the_bodies_are_valid(path: str) -> None:
    answer = make_server()[0].post(path, BODIES[path])
    assert answer.status in (200, 201), answer.body


@pytest.mark.parametrize("path", READERS)
def test_any_value_in_any_field_is_read_or_refused(path: str) -> None:
    @settings(max_examples=400, deadline=None)
    @given(changed_bodies(path))
    def hold(body: dict[str, Any]) -> None:
        try:
            READERS[path](json.loads(json.dumps(body)))
        except HttpError as error:
            assert error.status == 400
            assert error.message

    hold()


@pytest.mark.parametrize("path", BODIES)
def test_any_value_in_any_field_is_served_or_refused(path: str) -> None:
    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(changed_bodies(path), st.booleans())
    def hold(body: dict[str, Any], stream: bool) -> None:
        server: Server = make_server()[0]
        answer = asyncio.run(server.ask("POST", path, body | ({"stream": True} if stream else {})))
        assert answer.status in (200, 201, 400, 404, 409), answer.body
        assert b"inside the server" not in answer.body
        if answer.status >= 400:
            assert answer.error["message"]

    hold()


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=40))
def test_any_bytes_are_refused_or_served(body: bytes) -> None:
    assert Server().post("/v1/chat/completions", body).status == 400

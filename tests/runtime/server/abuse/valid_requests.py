"""A valid request for every route and most fields: where wrong ones are made from."""

from __future__ import annotations

from typing import Any

from tests.runtime.server.processes.real_server import MODEL

SECRET = "xyzzy-plugh"  # in every prompt; nothing may write it down
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 4, "pattern": "^[a-z]+$"},
        "kind": {"enum": ["a", "b"]},
        "parts": {"type": "array", "items": {"$ref": "#/$defs/part"}, "maxItems": 2},
    },
    "$defs": {"part": {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 9}, {"type": "null"}]}},
    "required": ["name", "kind"],
    "additionalProperties": False,
}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"kind": "a"}'}}
MESSAGES: list[Any] = [
    {"role": "system", "content": SECRET},
    {"role": "user", "content": [{"type": "text", "text": SECRET}, {"type": "text", "text": "ü🎈"}]},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": SECRET},
    {"role": "user", "content": SECRET, "name": "bob"},
]
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {"name": "f", "description": "F.", "parameters": SCHEMA, "strict": True},
    },
    {"type": "function", "function": {"name": "g"}},
]
SAMPLING: dict[str, Any] = {
    **{"model": MODEL, "temperature": 0.7, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "seed": 7},
    **{"frequency_penalty": 0.5, "presence_penalty": -0.5, "repetition_penalty": 1.1, "n": 2, "stop": ["zq"]},
    **{"logit_bias": {"65": 5, "66": -100}, "min_tokens": 1, "stop_token_ids": [3], "ignore_eos": False},
    **{"max_tokens": 4, "priority": 1, "timeout": 5, "user": "u", "metadata": {"a": "b"}, "store": False},
}
RESPONSE: dict[str, Any] = {
    **{"model": MODEL, "instructions": SECRET, "max_output_tokens": 4, "temperature": 0.5, "top_p": 0.9},
    **{"top_logprobs": 2, "include": ["message.output_text.logprobs"], "store": True, "stream": False},
    **{"tool_choice": "none", "parallel_tool_calls": True, "truncation": "disabled", "metadata": {}},
    "tools": [{"type": "function", "name": "f", "parameters": SCHEMA}],
    "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}},
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": SECRET}]},
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": SECRET}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": SECRET},
    ],
}
MESSAGE: dict[str, Any] = {
    **{"model": MODEL, "max_tokens": 4, "temperature": 0.5, "top_k": 3, "top_p": 0.9, "stream": False},
    **{"stop_sequences": ["zq"], "metadata": {"user_id": "u"}, "tool_choice": {"type": "auto"}},
    "system": [{"type": "text", "text": SECRET}],
    "tools": [{"name": "f", "description": "F.", "input_schema": SCHEMA}],
    "messages": [
        {"role": "user", "content": SECRET},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": SECRET, "signature": ""},
                {"type": "tool_use", "id": "t", "name": "f", "input": {"kind": "a"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": SECRET}]},
                {"type": "text", "text": SECRET},
            ],
        },
    ],
}
STREAM = {"stream": True, "stream_options": {"include_usage": True}}
CHAT = SAMPLING | {"messages": MESSAGES}
TEXT = SAMPLING | {"prompt": [SECRET, "a"], "logprobs": 2, "echo": True}

VALID: list[tuple[str, str, Any]] = [
    ("POST", "/v1/chat/completions", CHAT | {"logprobs": True, "top_logprobs": 2}),
    ("POST", "/v1/chat/completions", CHAT | STREAM),
    ("POST", "/v1/chat/completions", CHAT | {"tools": TOOLS, "tool_choice": "required"}),
    ("POST", "/v1/chat/completions", CHAT | STREAM | {"tools": TOOLS, "tool_choice": "auto"}),
    ("POST", "/v1/chat/completions", CHAT | {"n": 1, "session_id": "s1"}),
    (
        "POST",
        "/v1/chat/completions",
        CHAT | {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
    ),
    ("POST", "/v1/chat/completions", CHAT | {"structured_outputs": {"regex": "[ab]{1,3}c?"}}),
    ("POST", "/v1/chat/completions", CHAT | {"guided_choice": ["yes", "no"], "stream": True}),
    ("POST", "/v1/chat/completions", CHAT | {"guided_grammar": 'start: "a" | "b" start\n'}),
    ("POST", "/v1/completions", TEXT),
    ("POST", "/v1/completions", SAMPLING | STREAM | {"prompt": SECRET, "logprobs": 1}),
    (
        "POST",
        "/v1/completions",
        SAMPLING | {"prompt": [[65], [67]], "max_tokens": 0, "echo": True, "min_tokens": 0},
    ),
    ("POST", "/v1/completions", SAMPLING | {"prompt": SECRET, "guided_json": SCHEMA}),
    ("POST", "/v1/responses", RESPONSE),
    ("POST", "/v1/responses", RESPONSE | {"stream": True, "text": {}, "tool_choice": "required"}),
    ("POST", "/v1/responses", {"input": SECRET, "previous_response_id": "resp_1", "max_output_tokens": 2}),
    ("GET", "/v1/responses/resp_1", None),
    ("DELETE", "/v1/responses/resp_1", None),
    ("POST", "/v1/responses/resp_1/cancel", None),
    ("POST", "/v1/messages", MESSAGE),
    ("POST", "/v1/messages", MESSAGE | {"stream": True, "tool_choice": {"type": "any"}}),
    ("POST", "/v1/messages/count_tokens", {"model": MODEL, "messages": MESSAGE["messages"]}),
    ("GET", "/v1/models", None),
    ("GET", f"/v1/models/{MODEL}", None),
    ("POST", "/tokenize", {"model": MODEL, "messages": MESSAGES, "tools": TOOLS}),
    ("POST", "/tokenize", {"prompt": SECRET, "add_special_tokens": True, "return_token_strs": True}),
    ("POST", "/detokenize", {"model": MODEL, "tokens": [65, 66, 257]}),
    ("GET", "/v1/kvfold/requests", None),
    ("DELETE", "/v1/kvfold/requests/1", None),
    ("POST", "/v1/kvfold/sessions", {"session_id": "s2"}),
    ("GET", "/v1/kvfold/sessions", None),
    ("GET", "/v1/kvfold/sessions/s1", None),
    ("DELETE", "/v1/kvfold/sessions/s1", None),
    ("GET", "/health/live", None),
    ("GET", "/health/ready", None),
    ("GET", "/version", None),
    ("GET", "/metrics", None),
]

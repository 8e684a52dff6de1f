"""POST /v1/messages and count_tokens: Anthropic's bodies, streams and errors."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.runtime.server.asgi_client import Answer
from tests.runtime.server.routes.ask_server import MODEL, Server, events
from tests.runtime.server.routes.scripted_llm import Script, ScriptedLLM

PATH = "/v1/messages"
USER = {"role": "user", "content": "Hi"}


def ask(server: Server | None = None, **fields: Any) -> Answer:
    body = {"model": MODEL, "max_tokens": 9, "messages": [USER], **fields}
    return (server or Server()).post(PATH, body)


def rendered(**fields: Any) -> str:
    server = Server()
    answer = ask(server, **fields)
    assert answer.status == 200, answer.body
    return server.llm.tokenizer.decode_rendered(server.llm.asked[0][0].token_ids.tolist())


def test_a_body() -> None:
    found = ask(Server(ScriptedLLM(reused=5))).json()
    assert found.pop("id").startswith("msg_")
    assert found == {
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": [{"type": "text", "text": "Hello wörld!"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 16,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 5,
            "output_tokens": 13,
        },
    }


def test_a_stream() -> None:
    found = events(ask(stream=True))
    assert [name for name, _ in found] == [
        "message_start",
        "ping",
        "content_block_start",
        *["content_block_delta"] * 3,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    data = [json.loads(text) for _, text in found]
    assert all(one["type"] == name for one, (name, _) in zip(data, found, strict=True))
    assert data[0]["message"]["usage"]["input_tokens"] == 21
    assert "".join(one["delta"]["text"] for one in data[3:6]) == "Hello wörld!"
    assert data[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert data[-2]["usage"]["output_tokens"] == 13


def test_a_reply_without_a_word_has_an_empty_block() -> None:
    assert ask(Server(ScriptedLLM(Script([])))).json()["content"] == [{"type": "text", "text": ""}]
    names = [name for name, _ in events(ask(Server(ScriptedLLM(Script([]))), stream=True))]
    assert names[2:4] == ["content_block_start", "content_block_stop"]


@pytest.mark.parametrize(
    ("script", "reason", "text"),
    [
        (Script(), "end_turn", None),
        (Script(more={"stop_text": "##"}), "stop_sequence", "##"),
        (Script(finish="length"), "max_tokens", None),
        (Script(finish="cancelled", more={"cancel_reason": "deadline"}), "max_tokens", None),
        (Script(["x" * 491], finish="length"), "model_context_window_exceeded", None),
    ],
)
def test_why_it_ended(script: Script, reason: str, text: str | None) -> None:
    found = ask(Server(ScriptedLLM(script))).json()
    assert (found["stop_reason"], found["stop_sequence"]) == (reason, text)


def test_sampling_fields_arrive() -> None:
    server = Server()
    ask(server, temperature=0.3, top_k=5, top_p=0.5, stop_sequences=["##"], metadata={"user_id": "u"})
    params = server.llm.asked[0][1]
    assert (params.temperature, params.top_k, params.top_p, params.stop) == (0.3, 5, 0.5, ("##",))
    assert params.max_tokens == 9
    ask(server)
    assert server.llm.asked[1][1].temperature == 1.0, "Anthropic's default"


def test_the_system_prompt_comes_first_without_a_client_s_bookkeeping() -> None:
    billing = {"type": "text", "text": "x-anthropic-billing-header: cch=1;"}
    for system in ("Be brief.", [billing, {"type": "text", "text": "Be brief."}]):
        assert rendered(system=system).startswith("<|im_start|>system\nBe brief.<|im_end|>")
    assert rendered(system=[billing]).startswith("<|im_start|>user")


def test_the_user_goes_on_from_results_of_tools() -> None:
    result = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "7"}]}
    text = rendered(
        messages=[
            USER,
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {}}]},
            {"role": "user", "content": [result, {"type": "text", "text": "So?"}]},
        ]
    )
    assert "<|im_start|>user\n<tool_response>\n7\n</tool_response>\nSo?<|im_end|>" in text


def test_thoughts_that_come_back_are_no_text() -> None:
    thought = {"type": "thinking", "thinking": "hm", "signature": ""}
    said = {"type": "text", "text": "Yes."}
    hidden = {"type": "redacted_thinking", "data": "x"}
    text = rendered(messages=[USER, {"role": "assistant", "content": [thought, hidden, said]}, USER])
    assert "<|im_start|>assistant\nYes.<|im_end|>" in text


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"max_tokens": None}, "max_tokens is null"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"stop_sequences": ["x"] * 65}, "stop_sequences"),
        ({"messages": []}, "messages is empty"),
        ({"messages": [{"role": "tool", "content": ""}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "of type image, which this model"),
        ({"messages": [{"role": "user", "content": [{"type": "server_tool_use"}]}]}, "is not served here"),
        ({"system": [{"type": "image"}]}, "system[0]"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0]"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
    ],
)
def test_what_is_wrong_is_said_in_anthropic_s_form(fields: dict[str, Any], words: str) -> None:
    answer = ask(**fields)
    assert (answer.status, answer.json()["type"], answer.error["type"]) == (
        400,
        "error",
        "invalid_request_error",
    )
    assert words in answer.error["message"]


def test_an_unknown_model_is_not_found() -> None:
    answer = ask(model="claude")
    assert (answer.status, answer.error["type"]) == (404, "not_found_error")


def test_an_error_within_a_stream_is_an_event() -> None:
    llm = ScriptedLLM(Script(["a"], finish="cancelled", more={"cancel_reason": "drain"}))
    name, data = events(ask(Server(llm), stream=True))[-1]
    assert (name, json.loads(data)["error"]["type"]) == ("error", "overloaded_error")


def test_tokens_are_counted_without_a_reply() -> None:
    server = Server()
    answer = server.post(f"{PATH}/count_tokens", {"model": MODEL, "messages": [USER], "system": "Be brief."})
    assert answer.json() == {"input_tokens": 40}
    assert server.llm.asked == []


def test_thinking_is_ignored_and_said_to_be() -> None:
    assert ask(thinking={"type": "enabled", "budget_tokens": 1024}).headers["x-kvfold-ignored"] == "thinking"

"""Calls of tools, reasoning and forms of replies, in the words of every API."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kvfold.plugins.contract.errors import RequestError
from kvfold.runtime.structured.grammar_spec import Choice, GrammarSpec, JsonSchema, Lark, Regex, ToolCalls
from kvfold.runtime.structured.reasoning import Reasoning
from tests.runtime.server.routes.ask_server import MODEL, Server, chat, chunks, events
from tests.runtime.server.routes.scripted_llm import Script, ScriptedLLM

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
FUNCTION = {"name": "weather", "description": "d", "parameters": SCHEMA}
TOOLS = [{"type": "function", "function": FUNCTION}]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
# Cut as tokens may cut it.
SAID = Script(["<think>Hm", ".</think>", "See:\n<tool", '_call>\n{"name": "weath', CALL[27:50], CALL[50:]])
CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"


class Grammar:
    """Remembers nothing: the script is what it is."""

    warnings: tuple[str, ...] = ()

    def constraint(self) -> object:
        return object()


class Compiler:
    """A GrammarCompiler that keeps what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[GrammarSpec, Reasoning | None]] = []
        self.refuses: Exception | None = None

    def compile(self, spec: GrammarSpec, reasoning: Reasoning | None = None) -> Grammar:
        self.asked.append((spec, reasoning))
        if self.refuses is not None:
            raise self.refuses
        return Grammar()


def make_server(*scripts: Script, template: str | None = "<think>") -> tuple[Server, Compiler]:
    llm, compiler = ScriptedLLM(*scripts or (SAID,), max_length=2000), Compiler()
    llm.tokenizer.chat_template = template
    return Server(llm, compiler=compiler), compiler


def test_a_chat_s_calls_thoughts_and_text_are_told_apart() -> None:
    choice = make_server()[0].post(CHAT, chat(tools=TOOLS)).json()["choices"][0]
    message = choice["message"]
    assert (message["content"], message["reasoning_content"], choice["finish_reason"]) == (
        "See:",
        "Hm.",
        "tool_calls",
    )
    (call,) = message["tool_calls"]
    assert (call["type"], call["function"]) == (
        "function",
        {"name": "weather", "arguments": '{"city": "Rome"}'},
    )


def test_a_chat_s_stream_has_the_same_parts() -> None:
    deltas = [
        one["choices"][0]["delta"]
        for one in chunks(make_server()[0].post(CHAT, chat(tools=TOOLS, stream=True)))
    ]
    assert "".join(one.get("content") or "" for one in deltas) == "See:"
    assert "".join(one.get("reasoning_content", "") for one in deltas) == "Hm."
    calls = [call for one in deltas for call in one.get("tool_calls", ())]
    assert (calls[0]["index"], calls[0]["type"], calls[0]["function"]["name"]) == (0, "function", "weather")
    assert calls[0]["id"] and all("id" not in call for call in calls[1:])
    assert "".join(call["function"]["arguments"] for call in calls) == '{"city": "Rome"}'
    assert len(calls) > 2, "arguments come in pieces"


def test_a_message_s_calls_are_blocks() -> None:
    tools = [{"name": "weather", "input_schema": SCHEMA}]
    body = {"max_tokens": 99, "messages": [{"role": "user", "content": "Hi"}], "tools": tools}
    found = make_server()[0].post(MESSAGES, body).json()
    thought, said, call = found["content"]
    assert (thought["thinking"], said["text"], found["stop_reason"]) == ("Hm.", "See:", "tool_use")
    assert (call["type"], call["name"], call["input"]) == ("tool_use", "weather", {"city": "Rome"})

    streamed = [
        json.loads(data) for _, data in events(make_server()[0].post(MESSAGES, body | {"stream": True}))
    ]
    starts = [one["content_block"]["type"] for one in streamed if one["type"] == "content_block_start"]
    assert starts == ["thinking", "text", "tool_use"]
    stops = [one["index"] for one in streamed if one["type"] == "content_block_stop"]
    assert stops == [0, 1, 2]
    pieces = [
        one["delta"].get("partial_json", "") for one in streamed if one["type"] == "content_block_delta"
    ]
    assert json.loads("".join(pieces)) == {"city": "Rome"}


def test_a_response_s_calls_are_items() -> None:
    body = {"model": MODEL, "input": "Hi", "tools": [{"type": "function", **FUNCTION}]}
    server, _ = make_server()
    found = server.post(RESPONSES, body).json()
    assert [item["type"] for item in found["output"]] == ["reasoning", "message", "function_call"]
    thought, said, call = found["output"]
    assert (thought["content"][0]["text"], said["content"][0]["text"]) == ("Hm.", "See:")
    assert (call["name"], call["arguments"], call["status"]) == ("weather", '{"city": "Rome"}', "completed")
    assert found["usage"]["output_tokens_details"] == {"reasoning_tokens": 3}

    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "Sun."}
    again = server.post(RESPONSES, body | {"input": [result], "previous_response_id": found["id"]})
    assert again.status == 200
    asked = server.llm.tokenizer.decode_rendered(server.llm.asked[1][0].token_ids.tolist())
    assert f"See:\n{CALL}<|im_end|>" in asked and "<tool_response>\nSun.\n</tool_response>" in asked


def test_a_response_s_stream_has_the_same_items() -> None:
    body = {"model": MODEL, "input": "Hi", "tools": [{"type": "function", **FUNCTION}], "stream": True}
    found = [json.loads(data) for _, data in events(make_server()[0].post(RESPONSES, body))]
    done = [one["item"] for one in found if one["type"] == "response.output_item.done"]
    assert done == found[-1]["response"]["output"]
    deltas = [one["delta"] for one in found if one["type"] == "response.function_call_arguments.delta"]
    (whole,) = [one["arguments"] for one in found if one["type"] == "response.function_call_arguments.done"]
    assert "".join(deltas) == whole == '{"city": "Rome"}'


def test_a_call_that_is_cut_is_no_end() -> None:
    cut = Script([CALL[:55]], finish="length")
    choice = make_server(cut)[0].post(CHAT, chat(tools=TOOLS)).json()["choices"][0]
    assert choice["finish_reason"] == "length"
    body = {"max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}
    body["tools"] = [{"name": "weather", "input_schema": SCHEMA}]
    found = make_server(cut)[0].post(MESSAGES, body).json()
    assert (found["stop_reason"], found["content"][-1]["input"]) == ("max_tokens", {})


def test_thoughts_are_told_apart_without_tools_and_without_a_grammar() -> None:
    server, compiler = make_server(Script(["<think>a</think>", "b"]))
    message = server.post(CHAT, chat()).json()["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("a", "b")
    assert compiler.asked == []


def test_where_nothing_is_told_apart_marks_are_text() -> None:
    server, _ = make_server(Script([CALL]), template=None)
    assert server.post(CHAT, chat()).json()["choices"][0]["message"]["content"] == CALL


def test_the_model_is_told_of_its_tools() -> None:
    server, _ = make_server()
    server.post(CHAT, chat(tools=TOOLS))
    asked = server.llm.tokenizer.decode_rendered(server.llm.asked[0][0].token_ids.tolist())
    assert json.dumps(TOOLS[0]) in asked


@pytest.mark.parametrize(
    ("choice", "mode"),
    [
        (None, "auto"),
        ("none", "none"),
        ("required", "required"),
        ({"type": "function", "function": {"name": "weather"}}, "required"),
    ],
)
def test_a_choice_of_tools_is_a_grammar_and_each_reply_has_its_own(choice: Any, mode: str) -> None:
    server, compiler = make_server()
    server.post(CHAT, chat(tools=TOOLS, tool_choice=choice, parallel_tool_calls=False, n=2))
    ((spec, reasoning),) = compiler.asked
    assert isinstance(spec, ToolCalls)
    assert ([tool.name for tool in spec.tools], spec.choice, spec.parallel) == (["weather"], mode, False)
    assert reasoning == Reasoning("<think>", "</think>")
    made = [service.constraint for _, _, service in server.llm.asked]
    one, other = (make() for make in made if make is not None)
    assert one is not other


@pytest.mark.parametrize(
    ("fields", "spec"),
    [
        ({"response_format": {"type": "json_object"}}, JsonSchema(None, True)),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
            JsonSchema(SCHEMA, False),
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA, "strict": True}}},
            JsonSchema(SCHEMA, True),
        ),
        ({"structured_outputs": {"regex": "a+"}}, Regex("a+")),
        ({"guided_choice": ["a", "b"]}, Choice(("a", "b"))),
        ({"guided_grammar": "start: /a/"}, Lark("start: /a/")),
    ],
)
def test_a_form_is_a_grammar(fields: dict[str, Any], spec: GrammarSpec) -> None:
    server, compiler = make_server(template=None)
    server.post(CHAT, chat(**fields))
    server.post("/v1/completions", {"prompt": "Hi", **fields})
    assert compiler.asked == [(spec, None), (spec, None)]
    assert all(service.constraint is not None for _, _, service in server.llm.asked)


def test_forms_of_the_other_apis_are_grammars_too() -> None:
    server, compiler = make_server(template=None)
    form = {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}
    server.post(RESPONSES, {"input": "Hi", "text": {"format": form}})
    body = {
        "max_tokens": 9,
        "messages": [{"role": "user", "content": "Hi"}],
        "output_config": {"format": form},
    }
    server.post(MESSAGES, body)
    assert compiler.asked == [(JsonSchema(SCHEMA, True), None)] * 2


def test_what_cannot_be_enforced_is_refused_by_its_field_s_name() -> None:
    server, compiler = make_server()
    compiler.refuses = RequestError("the schema cannot be enforced")
    for fields, param in (({"tools": TOOLS}, "tools"), ({"guided_regex": "("}, "guided_regex")):
        answer = server.post(CHAT, chat(**fields))
        assert (answer.status, answer.error["param"]) == (400, param)
    assert server.llm.asked == []


def test_what_of_a_schema_has_no_effect_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Grammar, "warnings", ("format",))
    answer = make_server()[0].post(CHAT, chat(response_format={"type": "json_object"}))
    assert answer.headers["x-kvfold-ignored"] == "response_format%3A%20format"


def test_a_form_beside_tools_is_for_replies_that_call_none() -> None:
    server, compiler = make_server()
    form = {"response_format": {"type": "json_object"}}
    found: dict[str, list[GrammarSpec]] = {}
    for choice in ("auto", "none", "required"):
        assert server.post(CHAT, chat(tools=TOOLS, tool_choice=choice, **form)).status == 200
        found[choice] = [spec for spec, _ in compiler.asked]
        compiler.asked.clear()
    answer, (_, auto), (required,) = JsonSchema(None, True), found["auto"], found["required"]
    assert isinstance(auto, ToolCalls) and isinstance(required, ToolCalls)
    assert (auto.choice, auto.answer, required.answer) == ("auto", answer, None)
    assert found["auto"][0] == answer and found["none"] == [answer]
    compiler.refuses = RequestError("the schema cannot be enforced")
    assert server.post(CHAT, chat(tools=TOOLS, **form)).error["param"] == "response_format"


def test_without_a_compiler_forms_are_refused() -> None:
    answer = Server().post(CHAT, chat(response_format={"type": "json_object"}))
    assert (answer.status, answer.error["param"]) == (400, "response_format")


def test_a_call_among_the_messages_that_is_broken_is_refused() -> None:
    broken = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{"}}
    body = chat() | {"messages": [{"role": "assistant", "tool_calls": [broken]}]}
    assert make_server()[0].post(CHAT, body).status == 400

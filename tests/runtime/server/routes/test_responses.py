"""/v1/responses: bodies, streams, and what is kept of them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from kvfold.runtime.server.routes.conversations import ConversationLimits
from tests.runtime.server.asgi_client import Answer, until
from tests.runtime.server.routes.ask_server import MODEL, Server, events
from tests.runtime.server.routes.scripted_llm import Script, ScriptedLLM
from tests.runtime.server.routes.test_tool_calls import Compiler

PATH = "/v1/responses"


def ask(server: Server | None = None, **fields: Any) -> Answer:
    return (server or Server()).post(PATH, {"model": MODEL, "input": "Hi", **fields})


def call(server: Server, method: str, path: str, **headers: str) -> Answer:
    return asyncio.run(server.ask(method, f"{PATH}/{path}", None, headers))


def prompts(server: Server) -> list[str]:
    decode = server.llm.tokenizer.decode_rendered
    return [decode(prompt.token_ids.tolist()) for prompt, _, _ in server.llm.asked]


def test_a_body() -> None:
    found = ask(Server(ScriptedLLM(reused=5)), metadata={"a": "b"}).json()
    assert found["id"].startswith("resp_")
    assert (found["object"], found["status"], found["error"]) == ("response", "completed", None)
    (item,) = found["output"]
    assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "completed")
    part = {"type": "output_text", "text": "Hello wörld!", "annotations": [], "logprobs": []}
    assert item["content"] == [part]
    assert found["usage"] == {
        "input_tokens": 21,
        "input_tokens_details": {"cached_tokens": 5, "cache_write_tokens": 0},
        "output_tokens": 13,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 34,
    }
    assert (found["temperature"], found["metadata"], found["store"]) == (1.0, {"a": "b"}, True)


def test_a_response_repeats_what_it_was_asked_and_nothing_that_nobody_knows() -> None:
    server = Server(compiler=Compiler())
    function = {"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}}
    fields = {
        "tools": [{**function, "junk": "x" * 100}],
        "tool_choice": {"type": "function", "name": "f", "junk": 1},
        "text": {"format": {"type": "json_schema", "name": "n", "schema": {}, "junk": 1}, "verbosity": "low"},
        "user": "u",
    }
    found = ask(server, **fields).json()
    assert found["tools"] == [{**function, "strict": False}]
    assert found["tool_choice"] == {"type": "function", "name": "f"}
    assert found["text"] == {"format": {"type": "json_schema", "name": "n", "schema": {}}}
    allowed = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]}
    again = ask(server, tools=[function], tool_choice=allowed).json()
    assert again["tool_choice"] == allowed


def test_a_stream() -> None:
    server = Server()
    found = events(ask(server, stream=True))
    assert [name for name, _ in found] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * 3,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    data = [json.loads(text) for _, text in found]
    assert [one["sequence_number"] for one in data] == list(range(len(data)))
    assert all(one["type"] == name for one, (name, _) in zip(data, found, strict=True))
    assert "".join(one["delta"] for one in data[4:7]) == data[7]["text"] == "Hello wörld!"
    final = data[-1]["response"]
    assert final["output"][0] == data[-2]["item"]
    assert call(server, "GET", final["id"]).json() == final


def test_a_stream_s_response_is_the_whole_one() -> None:
    def settled(answer: Answer, whole: bool) -> Any:
        found = answer.json() if whole else json.loads(events(answer)[-1][1])["response"]
        found["output"][0].pop("id")
        return {name: value for name, value in found.items() if name not in ("id", "created_at")}

    fields: dict[str, Any] = {
        "top_logprobs": 1,
        "include": ["message.output_text.logprobs"],
        "instructions": "!",
    }
    assert settled(ask(**fields), True) == settled(ask(stream=True, **fields), False)


def test_log_probabilities_are_told_once_and_not_kept() -> None:
    server = Server()
    answer = server.post(PATH, {"input": "Hi", "top_logprobs": 1}).json()
    kept = call(server, "GET", answer["id"]).json()
    assert answer["output"][0]["content"][0]["logprobs"]
    assert kept["output"][0]["content"][0] == answer["output"][0]["content"][0] | {"logprobs": []}


def test_log_probabilities_come_where_they_are_asked_for() -> None:
    (item,) = ask(top_logprobs=1).json()["output"]
    assert item["content"][0]["logprobs"][0]["token"] == "H"
    deltas = [
        json.loads(text)
        for name, text in events(ask(top_logprobs=1, stream=True))
        if name and "delta" in name
    ]
    assert [len(one["logprobs"]) for one in deltas] == [5, 7, 1]


def test_a_response_goes_on_from_the_one_before() -> None:
    server = Server(ScriptedLLM(Script(["One."]), Script(["Two."])))
    first = ask(server, instructions="Be brief.").json()["id"]
    second = ask(server, input="And?", previous_response_id=first, instructions="Be long.").json()
    assert second["previous_response_id"] == first
    assert prompts(server)[1] == (
        "<|im_start|>system\nBe long.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nOne.<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_pages_of_a_response_go_to_the_first_that_goes_on_from_it() -> None:
    server = Server()
    first = ask(server).json()["id"]
    kept = server.llm.replies[0].kept
    ask(server, input="a", previous_response_id=first)
    ask(server, input="b", previous_response_id=first)
    assert [prompt.kept for prompt, _, _ in server.llm.asked] == [None, kept, None]
    assert all(service.keep for _, _, service in server.llm.asked)


def test_what_is_not_stored_keeps_no_pages_and_leaves_those_of_others() -> None:
    server = Server()
    first = ask(server).json()["id"]
    aside = ask(server, store=False, previous_response_id=first)
    assert server.llm.asked[1][0].kept is None
    assert not server.llm.asked[1][2].keep
    assert call(server, "GET", aside.json()["id"]).status == 404
    ask(server, previous_response_id=first)
    assert server.llm.asked[2][0].kept is not None


def test_items_of_every_kind_are_messages() -> None:
    server = Server()
    items = [
        {"role": "developer", "content": "Be brief."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        {
            "type": "reasoning",
            "id": "r",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "hm"}],
        },
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Let me see."}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "7"},
    ]
    assert ask(server, input=items).status == 200
    assert prompts(server)[0] == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nLet me see.\n"
        '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\n7\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({"input": 3}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]"),
        ({"input": [{"type": "function_call", "call_id": "c"}]}, "input[0].name"),
        ({"background": True}, "background"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"metadata": {str(at): "" for at in range(17)}}, "metadata"),
        ({"truncation": "auto"}, "truncation"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"previous_response_id": "resp_x"}, "previous_response_id"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
    ],
)
def test_what_cannot_be_served_is_refused(fields: dict[str, Any], param: str) -> None:
    answer = ask(**fields)
    assert (answer.status, answer.error["param"]) == (400, param)


def test_a_response_that_is_cut_is_incomplete() -> None:
    found = ask(Server(ScriptedLLM(Script(finish="length")))).json()
    assert (found["status"], found["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert found["output"][0]["status"] == "incomplete"


def test_an_error_within_a_stream_is_a_failed_response() -> None:
    server = Server(ScriptedLLM(Script(["a"], error=ValueError("secret"))))
    name, data = events(ask(server, stream=True))[-1]
    response = json.loads(data)["response"]
    assert (name, response["status"]) == ("response.failed", "failed")
    assert "secret" not in data
    assert call(server, "GET", response["id"]).json()["status"] == "failed"


def test_a_deleted_response_is_gone_and_so_are_its_pages() -> None:
    server = Server()
    name = ask(server).json()["id"]
    kept = server.llm.replies[0].kept
    assert call(server, "DELETE", name).json() == {"id": name, "object": "response", "deleted": True}
    assert server.llm.discarded == [kept]
    assert call(server, "GET", name).status == call(server, "DELETE", name).status == 404


def test_a_response_is_its_tenant_s() -> None:
    server = Server()
    answer = server.post(PATH, {"input": "Hi"}, {"x-tenant": "a"})
    name = answer.json()["id"]
    assert call(server, "GET", name, **{"x-tenant": "b"}).status == 404
    assert call(server, "GET", name, **{"x-tenant": "a"}).status == 200


def test_too_many_responses_push_out_the_oldest() -> None:
    server = Server(limits=ConversationLimits(max_responses=2))
    names = [ask(server).json()["id"] for _ in range(3)]
    assert [call(server, "GET", name).status for name in names] == [404, 200, 200]
    assert server.llm.discarded == [server.llm.replies[0].kept]


def test_an_unused_response_is_forgotten() -> None:
    server = Server(limits=ConversationLimits(seconds=0.0))
    assert call(server, "GET", ask(server).json()["id"]).status == 404


def test_a_running_response_can_be_cancelled() -> None:
    server = Server(ScriptedLLM(Script(["a"], finish="stop", waits=True)))

    async def cancel() -> tuple[Answer, Answer, Answer]:
        exchange = server.open(PATH, {"input": "Hi", "stream": True})
        await until(lambda: b"output_text.delta" in exchange.answer.body)
        name = json.loads(exchange.answer.parts[0].split(b"data: ")[1].split(b"\n")[0])["response"]["id"]
        busy = await server.ask("POST", PATH, {"input": "x", "previous_response_id": name})
        assert busy.status == 409
        cancelled = await server.ask("POST", f"{PATH}/{name}/cancel")
        ended = await exchange.end()
        return cancelled, ended, await server.ask("POST", f"{PATH}/{name}/cancel")

    cancelled, ended, again = asyncio.run(cancel())
    assert cancelled.json()["status"] == again.json()["status"] == "cancelled"
    last = json.loads(events(ended)[-1][1])["response"]
    assert (last["status"], last["output"][0]["content"][0]["text"]) == ("cancelled", "a")


def test_what_has_ended_is_not_cancelled() -> None:
    server = Server()
    answer = call(server, "POST", f"{ask(server).json()['id']}/cancel")
    assert answer.status == 400


def test_a_response_whose_client_left_is_cancelled() -> None:
    server = Server(ScriptedLLM(Script(["a"], waits=True)))

    async def leave() -> Answer:
        exchange = server.open(PATH, {"input": "Hi", "stream": True})
        await until(lambda: b"output_text.delta" in exchange.answer.body)
        name = json.loads(exchange.answer.parts[0].split(b"data: ")[1].split(b"\n")[0])["response"]["id"]
        exchange.leave()
        await exchange.end()
        return await server.ask("GET", f"{PATH}/{name}")

    assert asyncio.run(leave()).json()["status"] == "cancelled"
    assert server.llm.replies[0].cancelled == "client"

"""POST /v1/chat/completions: whole bodies and streams, byte for byte, and how they end."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest

from kvfold.plugins.contract.errors import RequestError
from tests.runtime.server.asgi_client import until
from tests.runtime.server.routes.ask_server import Server, chat, chunks, events
from tests.runtime.server.routes.scripted_llm import Script, ScriptedLLM

PATH = "/v1/chat/completions"
HEAD = '{"id":"chatcmpl-ID","object":"%s","created":0,"model":"tiny","choices":['
USAGE = (
    '"usage":{"prompt_tokens":21,"completion_tokens":13,"total_tokens":34,'
    '"prompt_tokens_details":{"cached_tokens":5}}}'
)
CHUNK = HEAD % "chat.completion.chunk" + '{"index":0,"delta":%s,"logprobs":null,"finish_reason":%s}]'


def plain(body: bytes) -> str:
    """Without what differs from request to request."""
    text = re.sub(r'"created":\d+', '"created":0', body.decode())
    return re.sub(r"-[0-9a-f]{32}", "-ID", text)


def test_a_body_byte_for_byte() -> None:
    answer = Server(ScriptedLLM(reused=5)).post(PATH, chat())
    message = '{"role":"assistant","content":"Hello wörld!","refusal":null}'
    choice = f'{{"index":0,"message":{message},"logprobs":null,"finish_reason":"stop"}}],'
    assert plain(answer.body) == HEAD % "chat.completion" + choice + USAGE
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")


def test_a_stream_byte_for_byte() -> None:
    body = chat(stream=True, stream_options={"include_usage": True})
    answer = Server(ScriptedLLM(reused=5)).post(PATH, body)
    deltas = [
        '{"role":"assistant","content":""}',
        '{"content":"Hello"}',
        '{"content":" wörld"}',
        '{"content":"!"}',
    ]
    lines = [CHUNK % (delta, "null") + ',"usage":null}' for delta in deltas]
    lines.append(CHUNK % ("{}", '"stop"') + ',"usage":null}')
    lines += [HEAD % "chat.completion.chunk" + "]," + USAGE, "[DONE]"]
    assert plain(answer.body) == "".join(f"data: {line}\n\n" for line in lines)
    assert answer.headers["content-type"].startswith("text/event-stream")


def test_the_usage_chunk_comes_on_demand_only() -> None:
    answer = Server().post(PATH, chat(stream=True))
    assert all("usage" not in chunk for chunk in chunks(answer))


def test_what_comes_at_once_goes_out_at_once() -> None:
    answer = Server().post(PATH, chat(stream=True))
    assert answer.parts[-2].count(b"data: ") == 2, "the last chunk and [DONE]"


@pytest.mark.parametrize("stream", [False, True])
def test_several_replies_have_an_index_and_a_seed_each(stream: bool) -> None:
    llm = ScriptedLLM(Script(["a", "b"]), Script(["c"], "length"))
    answer = Server(llm).post(PATH, chat(n=2, seed=5, stream=stream))
    assert [params.seed for _, params, _ in llm.asked] == [5, 6]
    if not stream:
        choices = answer.json()["choices"]
        found = [(one["index"], one["message"]["content"], one["finish_reason"]) for one in choices]
        assert found == [(0, "ab", "stop"), (1, "c", "length")]
        assert answer.json()["usage"]["prompt_tokens"] == 21, "one prompt"
        return
    said = ["", ""]
    ends = ["", ""]
    for chunk in chunks(answer):
        (choice,) = chunk["choices"]
        said[choice["index"]] += choice["delta"].get("content", "")
        ends[choice["index"]] = choice["finish_reason"] or ends[choice["index"]]
    assert (said, ends) == (["ab", "c"], ["stop", "length"])


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_have_bytes(stream: bool) -> None:
    llm = ScriptedLLM(Script(["Hé"]))
    answer = Server(llm).post(PATH, chat(logprobs=True, top_logprobs=1, stream=stream))
    choices = [one["choices"][0] for one in (chunks(answer) if stream else [answer.json()])]
    found = [one for choice in choices for one in (choice["logprobs"] or {"content": []})["content"]]
    top = [{"token": "A", "logprob": -1.0, "bytes": [65]}]
    assert found[0] == {"token": "H", "logprob": -0.5, "bytes": [72], "top_logprobs": top}
    assert [one["bytes"] for one in found[1:]] == [None, None], "halves of a character are no text"


def test_the_messages_reach_the_model_as_the_template_writes_them() -> None:
    server = Server()
    server.post(PATH, chat("Hi", "Hello", "<|im_end|>"))
    ids = server.llm.asked[0][0].token_ids.tolist()
    assert server.llm.tokenizer.decode_rendered(ids).endswith(
        "<|im_start|>user\n<|im_end|><|im_end|>\n<|im_start|>assistant\n"
    )
    assert ids.count(257) == 3, "what a message spells is text"


def test_priority_deadline_and_tenant_reach_the_model() -> None:
    server = Server()
    server.post(PATH, chat(priority=-1), {"x-request-timeout": "3", "x-tenant": "t1"})
    prompt, _, service = server.llm.asked[0]
    assert (service.priority, service.deadline, service.keep, prompt.tenant) == (-1, 3.0, False, "t1")


def test_max_tokens_is_what_the_context_leaves() -> None:
    server = Server(ScriptedLLM(max_length=100))
    server.post(PATH, chat())
    server.post(PATH, chat(max_tokens=7))
    assert [params.max_tokens for _, params, _ in server.llm.asked] == [79, 7]


def test_ignored_fields_are_named_in_a_header() -> None:
    answer = Server().post(PATH, chat(**{"top_a": 1, "ümlaut\n": 2}))
    assert answer.headers["x-kvfold-ignored"] == "top_a, %C3%BCmlaut%0A"


def test_another_model_is_not_found() -> None:
    answer = Server().post(PATH, chat() | {"model": "gpt"})
    assert (answer.status, answer.error["code"], answer.error["param"]) == (404, "model_not_found", "model")


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers() -> None:
    answer = Server(ScriptedLLM(max_length=21)).post(PATH, chat())
    assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")
    assert "21 tokens" in answer.error["message"] and "context 21" in answer.error["message"]


@pytest.mark.parametrize(
    ("body", "numbers"),
    [
        (chat(*["a"] * 42), ("42 messages", "41 tokens", "41 at most")),
        (chat("a" * 999), ("999 characters", "41 tokens", "492 at most")),
    ],
)
def test_what_can_never_fit_is_refused_before_it_is_tokenized(body: Any, numbers: tuple[str, ...]) -> None:
    server = Server(ScriptedLLM(max_length=41))
    server.llm.tokenizer.render = None  # type: ignore[assignment, method-assign] # nobody calls it
    answer = server.post(PATH, body)
    assert (answer.status, answer.error["param"]) == (400, "messages")
    assert answer.error["code"] == "context_length_exceeded"
    assert all(number in answer.error["message"] for number in numbers)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'{"messages": "\xff"}', b"[" * 100_000, b'{"messages": ' + b'{"a":' * 5000, b"\x00"],
)
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    answer = Server().post(PATH, body)
    assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")


def test_a_refusal_of_the_model_is_the_client_s() -> None:
    llm = ScriptedLLM()
    llm.refuses = RequestError("the prompt has token 999")
    answer = Server(llm).post(PATH, chat())
    assert (answer.status, answer.error["message"]) == (400, "the prompt has token 999")


def test_an_error_within_a_stream_is_an_event_and_the_last_one() -> None:
    llm = ScriptedLLM(Script(["a"], error=RequestError("the row of logits is not a number")))
    answer = Server(llm).post(PATH, chat(stream=True))
    last = json.loads(events(answer)[-1][1])
    assert last["error"]["message"] == "the row of logits is not a number"
    assert "[DONE]" not in answer.body.decode()


@pytest.mark.parametrize(("reason", "status"), [("drain", 503), ("client", 499), ("error", 500)])
def test_a_reply_that_others_cancelled_is_no_reply(reason: str, status: int) -> None:
    llm = ScriptedLLM(Script(finish="cancelled", more={"cancel_reason": reason}))
    assert Server(llm).post(PATH, chat()).status == status
    assert "error" in json.loads(events(Server(llm).post(PATH, chat(stream=True)))[-1][1])


def test_a_deadline_leaves_what_was_said() -> None:
    llm = ScriptedLLM(Script(finish="cancelled", more={"cancel_reason": "deadline"}))
    choice = Server(llm).post(PATH, chat()).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Hello wörld!", "length")


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_cancels_all_its_replies(stream: bool) -> None:
    server = Server(ScriptedLLM(Script(waits=True)))

    async def leave() -> None:
        exchange = server.open(PATH, chat(n=2, stream=stream))
        await until(lambda: len(server.llm.running) == 2)
        await asyncio.sleep(0.01)
        exchange.leave()
        await exchange.end()

    asyncio.run(leave())
    assert [reply.cancelled for reply in server.llm.replies] == ["client", "client"]

"""POST /v1/completions: prompts of every kind, echo, and log probabilities with offsets."""

from __future__ import annotations

from typing import Any

import pytest

from tests.runtime.server.asgi_client import Answer
from tests.runtime.server.routes.ask_server import MODEL, Server, chunks
from tests.runtime.server.routes.scripted_llm import Script, ScriptedLLM

PATH = "/v1/completions"


def ask(server: Server | None = None, **fields: Any) -> Answer:
    return (server or Server()).post(PATH, {"model": MODEL, "prompt": "Hi", **fields})


def choices(answer: Answer) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = answer.json()["choices"]
    return found


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [
        ("Hi", [[72, 105]]),
        (["Hi", "Ho"], [[72, 105], [72, 111]]),
        ([72, 105], [[72, 105]]),
        ([[72, 105], [7]], [[72, 105], [7]]),
        (["Hi", [7]], [[72, 105], [7]]),
    ],
)
def test_a_prompt_is_a_text_tokens_or_a_list_of_either(prompt: Any, tokens: list[list[int]]) -> None:
    server = Server()
    answer = ask(server, prompt=prompt)
    assert [asked.token_ids.tolist() for asked, _, _ in server.llm.asked] == tokens
    assert [one["index"] for one in choices(answer)] == list(range(len(tokens)))


@pytest.mark.parametrize("prompt", [None, 3, True, [], [-1], [2**40], [1, "a"], [[1, True]], {}, ["a", None]])
def test_what_is_no_prompt_is_refused(prompt: Any) -> None:
    answer = ask(prompt=prompt)
    assert answer.status == 400
    assert answer.error["param"].startswith("prompt")


def test_an_empty_prompt_is_the_model_s_to_refuse() -> None:
    llm = ScriptedLLM()
    ask(Server(llm), prompt="")
    assert len(llm.asked[0][0].token_ids) == 0


def test_a_completion_has_sixteen_tokens_by_default() -> None:
    server = Server()
    ask(server)
    ask(server, max_tokens=None)
    ask(server, max_tokens=3)
    assert [params.max_tokens for _, params, _ in server.llm.asked] == [16, 16, 3]


def test_replies_to_several_prompts_are_numbered_through() -> None:
    llm = ScriptedLLM(*(Script([text]) for text in "abcd"))
    answer = ask(Server(llm), prompt=["x", "y"], n=2, seed=1)
    assert [(one["index"], one["text"]) for one in choices(answer)] == [
        (0, "a"),
        (1, "b"),
        (2, "c"),
        (3, "d"),
    ]
    assert [params.seed for _, params, _ in llm.asked] == [1, 2, 1, 2]
    assert llm.asked[0][0] is llm.asked[1][0], "one prompt, prefilled once"
    assert answer.json()["usage"]["prompt_tokens"] == 2


def test_echo_begins_with_the_prompt() -> None:
    assert choices(ask(echo=True))[0]["text"] == "HiHello wörld!"
    assert choices(ask(prompt=[72, 105], echo=True))[0]["text"] == "HiHello wörld!"


def test_scoring_a_prompt_as_lm_eval_does_it() -> None:
    llm = ScriptedLLM(Script(["!"]))
    answer = ask(Server(llm), prompt=[[72, 105, 63]], echo=True, logprobs=1, max_tokens=1, temperature=0)
    found = choices(answer)[0]["logprobs"]
    assert found["tokens"] == ["H", "i", "?", "!"]
    assert found["token_logprobs"] == [None, -0.25, -0.25, -0.5]
    assert found["text_offset"] == [0, 1, 2, 3]
    assert found["top_logprobs"][1] == {"i": -0.25}
    assert llm.asked[0][1].prompt_logprobs == 1


def test_a_prompt_is_scored_without_a_reply() -> None:
    server = Server()
    choice = choices(ask(server, echo=True, logprobs=0, max_tokens=0))[0]
    assert (choice["text"], choice["logprobs"]["token_logprobs"]) == ("Hi", [None, -0.25])
    _, params, _ = server.llm.asked[0]
    assert (params.max_tokens, params.prompt_logprobs) == (0, 0)
    assert choices(ask(echo=True, max_tokens=0))[0]["logprobs"] is None


def test_offsets_count_characters_and_halves_of_one_share_theirs() -> None:
    llm = ScriptedLLM(Script(["é!"]))
    found = choices(ask(Server(llm), logprobs=2))[0]["logprobs"]
    assert found["text_offset"] == [0, 0, 1]
    assert found["tokens"][2] == "!"
    assert found["top_logprobs"][2] == {"A": -1.0, "B": -2.0, "!": -0.5}


def test_tokens_of_one_text_count_as_the_likelier() -> None:
    llm = ScriptedLLM(Script(["A"]))
    assert choices(ask(Server(llm), logprobs=1))[0]["logprobs"]["top_logprobs"] == [{"A": -0.5}]


def test_a_stream_is_the_same_text_with_the_same_offsets() -> None:
    llm = ScriptedLLM(Script(["Hé", "y"]))
    whole = choices(ask(Server(llm), logprobs=0))[0]
    answer = ask(Server(ScriptedLLM(Script(["Hé", "y"]))), logprobs=0, stream=True)
    parts = [chunk["choices"][0] for chunk in chunks(answer)]
    assert "".join(part["text"] for part in parts) == whole["text"]
    for name, values in whole["logprobs"].items():
        assert [one for part in parts if part["logprobs"] for one in part["logprobs"][name]] == values
    assert [part["finish_reason"] for part in parts][-1] == "stop"


def test_a_stream_may_echo() -> None:
    answer = ask(echo=True, stream=True, stream_options={"include_usage": True}, prompt=["Hi", "Ho"])
    found = ["", ""]
    *data, usage = chunks(answer)
    for chunk in data:
        found[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert found == ["HiHello wörld!", "HoHello wörld!"]
    assert (usage["choices"], usage["usage"]["prompt_tokens"]) == ([], 4)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"best_of": 2}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"echo": True, "logprobs": 1, "stream": True}, "echo"),
        ({"session_id": "s"}, "session_id"),
        ({"prompt": ["a"] * 513, "n": 2}, "prompt"),
    ],
)
def test_what_a_completion_cannot_do_is_refused(fields: dict[str, Any], param: str) -> None:
    answer = ask(**fields)
    assert (answer.status, answer.error["param"]) == (400, param)


def test_harmless_values_of_refused_fields_pass() -> None:
    assert ask(best_of=1, suffix="", n=1).status == 200

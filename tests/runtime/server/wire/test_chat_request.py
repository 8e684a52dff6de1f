"""Bodies of chat completions: what they ask for, and what is refused with the field's name."""

from __future__ import annotations

from typing import Any

import pytest

from kvfold.runtime.server.http import HttpError
from kvfold.runtime.server.wire.chat_request import chat_ask
from kvfold.runtime.server.wire.fields.ask import Ask

USER = {"role": "user", "content": "Hi"}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}


def read(**fields: Any) -> Ask:
    return chat_ask({"messages": [USER], **fields}, {})[0]


def messages(*given: Any) -> list[dict[str, Any]]:
    return chat_ask({"messages": list(given)}, {})[1]


def refusal(**fields: Any) -> HttpError:
    with pytest.raises(HttpError) as caught:
        chat_ask({"messages": [USER], **fields}, {})
    assert caught.value.status == 400
    return caught.value


def test_a_bare_body_samples_as_openai_does() -> None:
    ask = read()
    assert (ask.params.temperature, ask.params.top_p, ask.n, ask.stream) == (1.0, 1.0, 1, False)
    assert (ask.max_tokens, ask.params.logprobs, ask.deadline, ask.session) == (None, None, None, None)


def test_every_sampling_field_arrives() -> None:
    fields = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.1,
        "frequency_penalty": 0.5,
        "presence_penalty": -0.5,
        "repetition_penalty": 1.1,
        "seed": 7,
        "min_tokens": 2,
        "ignore_eos": True,
    }
    params = read(**fields, stop_token_ids=[3], logit_bias={"5": -100, "6": 1.5}).params
    assert {name: getattr(params, name) for name in fields} == fields
    assert params.stop_token_ids == (3,) and dict(params.logit_bias) == {5: -100, 6: 1.5}


@pytest.mark.parametrize(("given", "stop"), [("\n", ("\n",)), (["a", "b"], ("a", "b")), (None, ()), ("", ())])
def test_stop_is_a_text_or_a_list(given: Any, stop: tuple[str, ...]) -> None:
    assert read(stop=given).params.stop == stop


def test_a_null_is_as_good_as_nothing() -> None:
    names = ("temperature", "max_tokens", "stop", "n", "stream", "stream_options", "tools", "tool_choice")
    assert read(**dict.fromkeys(names)) == read()


def test_a_negative_seed_and_a_huge_one_are_seeds() -> None:
    assert read(seed=-1).params.seed == 2**64 - 1
    assert read(seed=2**70 + 5).params.seed == 5


def test_each_reply_has_a_seed_of_its_own_and_what_the_context_leaves() -> None:
    ask = read(seed=3, n=2)
    params = [ask.params_for(10, 100, at) for at in range(2)]
    assert [(one.seed, one.max_tokens) for one in params] == [(3, 90), (4, 90)]
    assert read(max_tokens=5).params_for(10, 100, 0).max_tokens == 5
    assert read(max_completion_tokens=4, max_tokens=5).params_for(98, 100, 0).max_tokens == 2


def test_log_probabilities_are_asked_for_by_two_fields() -> None:
    assert read(logprobs=True).params.logprobs == 0
    assert read(logprobs=True, top_logprobs=20).params.logprobs == 20
    assert read(logprobs=False, top_logprobs=0).params.logprobs is None
    assert refusal(top_logprobs=2).param == "top_logprobs"
    assert refusal(logprobs=True, top_logprobs=21).param == "top_logprobs"


def test_deadline_and_session_stand_in_the_body_or_in_headers() -> None:
    headers = {"x-request-timeout": "2.5", "x-session-id": "s1"}
    ask, _ = chat_ask({"messages": [USER]}, headers)
    assert (ask.deadline, ask.session) == (2.5, "s1")
    ask, _ = chat_ask({"messages": [USER], "timeout": 1, "session_id": "s2", "priority": -3}, headers)
    assert (ask.deadline, ask.session, ask.priority) == (1.0, "s2", -3)


@pytest.mark.parametrize("seconds", ["soon", "nan", "0", "-1", "inf"])
def test_a_timeout_that_is_no_time_is_refused(seconds: str) -> None:
    with pytest.raises(HttpError, match="use seconds above 0") as caught:
        chat_ask({"messages": [USER]}, {"x-request-timeout": seconds})
    assert caught.value.param == "x-request-timeout"


def test_unknown_fields_are_named_and_known_ones_without_use_are_not() -> None:
    ask = read(user="u", metadata={"a": "b"}, store=True, service_tier="auto", foo=1)
    assert ask.ignored == ("foo", "service_tier")
    assert len(read(**dict.fromkeys(map(str, range(1000)))).ignored) < 20


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 101}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"stop": [1]}, "stop[0]"),
        ({"stop": ["x"] * 65}, "stop"),
        ({"stop": ["x" * 512, "y" * 513]}, "stop"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 1000}}, "logit_bias"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"function_call": "auto"}, "function_call"),
        ({"session_id": ""}, "session_id"),
        ({"session_id": "a b"}, "session_id"),
        ({"priority": 2**40}, "priority"),
        ({"timeout": 0}, "timeout"),
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": ["Hi"]}, "messages[0]"),
        ({"messages": [{"role": "alien", "content": ""}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{**USER, "name": 1}]}, "messages[0].name"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0].tool_calls[0]"),
    ],
)
def test_a_wrong_value_is_refused_by_its_field_s_name(fields: dict[str, Any], param: str) -> None:
    error = refusal(**fields)
    assert error.param == param
    assert error.message.startswith(param)


def test_a_missing_field_is_named() -> None:
    with pytest.raises(HttpError, match="messages is missing") as caught:
        chat_ask({}, {})
    assert caught.value.param == "messages"


def test_parts_of_text_are_one_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert messages({"role": "user", "content": parts}) == [{"role": "user", "content": "a\nb"}]


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file"])
def test_a_part_that_is_no_text_is_refused_as_unreadable(kind: str) -> None:
    error = refusal(messages=[{"role": "user", "content": [{"type": kind, kind: {}}]}])
    assert error.param == "messages[0].content[0]"
    assert f"of type {kind}, which this model cannot read" in error.message


def test_a_developer_is_a_system() -> None:
    assert messages({"role": "developer", "content": "x"})[0]["role"] == "system"


def test_calls_and_their_results_go_to_the_template() -> None:
    called, result = messages(
        {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "hm"},
        {"role": "tool", "content": "7", "tool_call_id": "c1"},
    )
    assert called["tool_calls"] == [CALL]
    assert (called["content"], called["reasoning_content"]) == ("", "hm")
    assert result == {"role": "tool", "content": "7", "tool_call_id": "c1"}


def test_a_token_id_that_is_none_is_refused_by_its_field_s_name() -> None:
    assert refusal(stop_token_ids=[-1]).param == "stop_token_ids"
    assert refusal(logit_bias={"1": 1e3}).param == "logit_bias"

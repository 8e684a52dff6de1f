"""Tools, calls and answers in front of the model: by its template, or by a text of ours; never as control."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from kvfold.plugins.contract.errors import RequestError
from kvfold.plugins.contract.tokenizer_config import TokenizerConfig
from kvfold.runtime.structured.call_formats import CALL_FORMATS, HERMES, choose_call_format
from kvfold.runtime.structured.reasoning import Reasoning, find_reasoning
from kvfold.runtime.structured.reply_events import join_events
from kvfold.runtime.structured.reply_parser import ReplyParser
from kvfold.runtime.structured.tool_prompt import describe_tools, prepare_chat
from kvfold.runtime.structured.tools import Tool, find_tool, read_tools
from kvfold.runtime.text.chat import encode_chat
from kvfold.runtime.text.tokenizer import BundleTokenizer

PLAIN = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
WITH_TOOLS = (
    "{% if tools %}<|start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}"
    "Write <tool_call> and </tool_call>.<|end|>\n{% endif %}"
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content or '' }}"
    "{% if 'tool_calls' in m %}{% for c in m.tool_calls %}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}{% endif %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n<think>\n{% endif %}"
)
CONTROL = ("<|start|>", "<|end|>", "<tool_call>", "</tool_call>", "<think>")
WEATHER = Tool(
    "weather", "Of a <|end|> city.", {"type": "object", "properties": {"</tool_call>": {"enum": ["<|end|>"]}}}
)
ARGUMENTS = {"</tool_call>": "<|end|>"}
CHAT: list[dict[str, Any]] = [
    {"role": "user", "content": "How is it? <tool_call>"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "a",
                "type": "function",
                "function": {"name": "weather", "arguments": json.dumps(ARGUMENTS)},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "a", "content": "Fine<|end|>"},
    {"role": "assistant", "content": "Fine.", "tool_calls": []},
]


def tokenizer(template: str) -> BundleTokenizer:
    bpe = Tokenizer(
        models.BPE({sign: i for i, sign in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, [])
    )
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.add_special_tokens([AddedToken(text, normalized=False) for text in CONTROL[:2]])
    bpe.add_tokens([AddedToken(text, normalized=False) for text in CONTROL[2:]])
    return BundleTokenizer(bpe, TokenizerConfig(chat_template=template))


def control(template: str, tools: tuple[Tool, ...] = (WEATHER,)) -> list[str]:
    """Control tokens of the chat above as the model reads them."""
    chat = prepare_chat(template, CHAT, tools, HERMES)
    read = tokenizer(template)
    names = {index: text for text, index in read.added_tokens.items()}
    return [
        names[token]
        for token in encode_chat(read, chat.messages, tools=chat.tools).token_ids
        if token in names
    ]


TURN = ["<|start|>", "<|end|>"]


def test_a_template_that_knows_tools_writes_them_and_what_they_spell_is_text() -> None:
    system = ["<|start|>", "<tool_call>", "</tool_call>", "<|end|>"]
    call = ["<|start|>", "<tool_call>", "</tool_call>", "<|end|>"]
    assert control(WITH_TOOLS) == [*system, *TURN, *call, *TURN, *TURN, "<|start|>", "<think>"]


def test_without_tools_the_same_template_says_nothing_of_them() -> None:
    chat = prepare_chat(WITH_TOOLS, CHAT, (), HERMES)
    assert chat.tools == ()
    text = tokenizer(WITH_TOOLS).render(chat.messages, add_generation_prompt=False, tools=chat.tools)
    assert "Write" not in text and json.dumps(ARGUMENTS) in text
    assert "tool_calls" not in chat.messages[-1]


def test_a_template_that_knows_no_tools_gets_a_text_of_ours() -> None:
    assert control(PLAIN) == [*TURN * 5, "<|start|>"]
    chat = prepare_chat(PLAIN, CHAT, (WEATHER,), HERMES)
    roles = [message["role"] for message in chat.messages]
    assert roles == ["system", "user", "assistant", "user", "assistant"] and chat.tools == ()
    assert chat.messages[0]["content"] == describe_tools((WEATHER,), HERMES)
    assert json.dumps(WEATHER.definition()) in chat.messages[0]["content"]
    assert chat.messages[3]["content"] == "<tool_response>\nFine<|end|>\n</tool_response>"


def test_a_system_message_keeps_its_words_before_ours() -> None:
    chat = prepare_chat(PLAIN, [{"role": "system", "content": "Be brief."}, *CHAT], (WEATHER,), HERMES)
    assert chat.messages[0]["content"] == f"Be brief.\n\n{describe_tools((WEATHER,), HERMES)}"
    assert prepare_chat(PLAIN, CHAT[:1], (), HERMES).messages == (CHAT[0],)


STRICT = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('in turn, please') }}{% endif %}"
    "<|start|>{{ m.content }}{% endfor %}"
)


@pytest.mark.parametrize("template", [STRICT, STRICT.replace("raise_exception('no system')", "''")])
def test_a_template_that_wants_users_and_assistants_in_turn_gets_them(template: str) -> None:
    answers = [*CHAT[:2], CHAT[2], CHAT[2], {"role": "user", "content": "And now?"}]
    chat = prepare_chat(template, answers, (WEATHER,), HERMES)
    tokenizer(template).render(chat.messages, add_generation_prompt=True)
    assert chat.messages[0]["content"] == f"{CHAT[0]['content']}\n\n{describe_tools((WEATHER,), HERMES)}"
    answer = "<tool_response>\nFine<|end|>\n</tool_response>"
    assert chat.messages[2]["content"] == f"{answer}\n{answer}\nAnd now?"


@pytest.mark.parametrize("form", CALL_FORMATS, ids=lambda form: form.name)
def test_calls_are_spelled_as_the_parser_reads_them(form: Any) -> None:
    text = prepare_chat(PLAIN, CHAT, (), form).messages[1]["content"]
    parser = ReplyParser(None, form)
    (call,) = join_events([*parser.push(text), *parser.finish()]).calls
    assert (call.name, json.loads(call.arguments)) == ("weather", ARGUMENTS)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        ({"function": {"arguments": "{}"}}, "give its function a name"),
        ("weather", "give its function a name"),
        ({"function": {"name": "f", "arguments": "{"}}, "no JSON"),
        ({"function": {"name": "f", "arguments": "[" * 100_000}}, "no JSON"),
        ({"function": {"name": "f", "arguments": "[1]"}}, "send a JSON object"),
    ],
)
def test_a_wrong_call_among_the_messages_is_refused(call: Any, sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        prepare_chat(PLAIN, [{"role": "assistant", "tool_calls": [call]}], (), HERMES)


@pytest.mark.parametrize(
    ("template", "name"),
    [
        (None, "hermes"),
        (PLAIN, "hermes"),
        (WITH_TOOLS, "hermes"),
        ('{{ "[TOOL_CALLS] [" }}', "mistral-spaced"),
        ('{{ "[TOOL_CALLS][" }}', "mistral"),
        ('{{ "[TOOL_CALLS]" + name + "[ARGS]" }}', "mistral-args"),
        ("""{{- '{"name": "' + name + '", ' }}{{- '"parameters": ' }}""", "llama-3.1"),
    ],
)
def test_the_format_of_calls_is_the_template_s(template: str | None, name: str) -> None:
    assert choose_call_format(template).name == name


def test_reasoning_is_open_where_the_template_opened_it() -> None:
    read = tokenizer(WITH_TOOLS)
    prompt = read.render(CHAT[:1], add_generation_prompt=True)
    assert find_reasoning(WITH_TOOLS, prompt) == Reasoning("<think>", "</think>", opened=True)
    closed = WITH_TOOLS.replace("<think>\n", "<think>\n\n</think>\n\n")
    assert find_reasoning(
        closed, tokenizer(closed).render(CHAT[:1], add_generation_prompt=True)
    ) == Reasoning("<think>", "</think>")
    assert find_reasoning(PLAIN, prompt) is None and find_reasoning(None, prompt) is None


def test_what_a_message_spells_opens_no_reasoning() -> None:
    template = "{# <think> #}{{ messages[-1].content }}"
    prompt = tokenizer(template).render(
        [{"role": "user", "content": "x <think>\n"}], add_generation_prompt=True
    )
    found = find_reasoning(template, prompt)
    assert found is not None and not found.opened


def test_tools_are_read_as_openai_writes_them() -> None:
    function: dict[str, Any] = {
        "name": "f",
        "description": None,
        "parameters": {"properties": {}},
        "strict": True,
    }
    nested, flat = {"type": "function", "function": function}, {"type": "function", **function}
    expected = Tool("f", "", {"properties": {}}, True)
    assert read_tools([nested]) == read_tools([flat]) == (expected,)
    assert expected.schema == {"type": "object", "properties": {}}
    assert find_tool((expected,), "f") is expected
    with pytest.raises(RequestError, match="none of the tools"):
        find_tool((expected,), "g")


@pytest.mark.parametrize(
    ("definition", "sentence"),
    [
        ({"type": "retrieval"}, "a tool is"),
        ("f", "a tool is"),
        ({"type": "function", "function": {}}, "give its function a name"),
        ({"type": "function", "name": "a b"}, "1 to 64 letters"),
        ({"type": "function", "name": "f", "description": 3}, "use a text"),
        ({"type": "function", "name": "f", "parameters": []}, "use a JSON schema"),
        ({"type": "function", "name": "f", "parameters": {"type": "array"}}, "arguments are an object"),
    ],
)
def test_a_wrong_tool_is_refused(definition: Any, sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        read_tools([definition])


def test_two_tools_of_one_name_are_refused() -> None:
    with pytest.raises(RequestError, match="two tools are called 'f'"):
        read_tools([{"type": "function", "name": "f"}] * 2)

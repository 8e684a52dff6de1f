"""A reply's text as events: the same however it is cut, and nothing of it lost."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvfold.runtime.structured.call_formats import CALL_FORMATS, HERMES, CallFormat
from kvfold.runtime.structured.reasoning import Reasoning
from kvfold.runtime.structured.reply_events import (
    ContentDelta,
    ParsedReply,
    ReasoningDelta,
    ReplyEvent,
    ToolCall,
    ToolCallArguments,
    ToolCallStart,
    join_events,
)
from kvfold.runtime.structured.reply_parser import MAX_SPACE, ReplyParser, kept_tokens, new_call_id

THINK = Reasoning("<think>", "</think>")
OPENED = Reasoning("<think>", "</think>", opened=True)
FORMATS = {form.name: form for form in CALL_FORMATS}
F_CALL = '<tool_call>\n{"name": "f", "arguments": {"a": "}\\"{"}}\n</tool_call>'


def events_of(
    text: str, reasoning: Reasoning | None = None, calls: CallFormat | None = None, cuts: tuple[int, ...] = ()
) -> list[ReplyEvent]:
    parser = ReplyParser(reasoning, calls, lambda: "id")
    events: list[ReplyEvent] = []
    borders = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    for start, end in pairwise(borders):
        events += parser.push(text[start:end])
    return events + parser.finish()


def parse(
    text: str, reasoning: Reasoning | None = None, calls: CallFormat | None = None, cuts: tuple[int, ...] = ()
) -> ParsedReply:
    return join_events(events_of(text, reasoning, calls, cuts))


# Text, marks of reasoning, format of calls; then content, reasoning, and names and arguments of calls.
REPLIES: dict[str, tuple[str, Reasoning | None, CallFormat | None, str, str, tuple[tuple[str, str], ...]]] = {
    "text": (" Hello <b>\n", None, None, " Hello <b>\n", "", ()),
    "marks that mean nothing": (f"<think>{F_CALL}", None, None, f"<think>{F_CALL}", "", ()),
    "reasoning": (" <think>\n So \n</think>\n\nHello ", THINK, None, "Hello ", "So", ()),
    "opened": ("\nSo</think>Hello", OPENED, None, "Hello", "So", ()),
    "no reasoning": (" \nHello <think>x</think>", THINK, None, " \nHello <think>x</think>", "", ()),
    "cut in reasoning": ("<think> So </thi", THINK, None, "", "So </thi", ()),
    "cut in a mark": ("<thin", THINK, None, "<thin", "", ()),
    "call": (F_CALL, None, HERMES, "", "", (("f", '{"a": "}\\"{"}'),)),
    "text and call": (f"I look. \n{F_CALL}\n", None, HERMES, "I look.", "", (("f", '{"a": "}\\"{"}'),)),
    "two calls": (f"{F_CALL}\n{F_CALL}", None, HERMES, "", "", (("f", '{"a": "}\\"{"}'),) * 2),
    "text after a call": (f"{F_CALL}\n\nDone. ", None, HERMES, "Done. ", "", (("f", '{"a": "}\\"{"}'),)),
    "everything": (f"<think>a</think>\nb\n{F_CALL}", THINK, HERMES, "b", "a", (("f", '{"a": "}\\"{"}'),)),
    "call within reasoning": (f"<think>{F_CALL}</think>b", THINK, HERMES, "b", F_CALL, ()),
    "cut in a name": ('<tool_call>\n{"name": "ge', None, HERMES, '<tool_call>\n{"name": "ge', "", ()),
    "cut in arguments": (
        '<tool_call>\n{"name": "f", "arguments": {"a',
        None,
        HERMES,
        "",
        "",
        (("f", '{"a'),),
    ),
    "cut behind them": (F_CALL[:-9], None, HERMES, "", "", (("f", '{"a": "}\\"{"}'),)),
    "cut in a second call": (
        f'{F_CALL}\n<tool_call>\n{{"name": "g',
        None,
        HERMES,
        "",
        "",
        (("f", '{"a": "}\\"{"}'),),
    ),
    "cut in a second mark": (f"{F_CALL}\n<tool_", None, HERMES, "", "", (("f", '{"a": "}\\"{"}'),)),
    "a second call without a name": (
        '[TOOL_CALLS][{"name": "f", "arguments": {}}, {"name": "g g", "arguments": {}}]',
        None,
        FORMATS["mistral"],
        '}, {"name": "g g", "arguments": {}}]',
        "",
        (("f", "{}"),),
    ),
    "a mark alone": ("a <tool_call> b", None, HERMES, "a <tool_call> b", "", ()),
    "no name": (
        '<tool_call>\n{"name": "f f", "arguments": {}}',
        None,
        HERMES,
        '<tool_call>\n{"name": "f f", "arguments": {}}',
        "",
        (),
    ),
    "backslashes": (
        '{"name": "f", "parameters": {"a\\\\": "\\\\\\""}}',
        None,
        FORMATS["llama-3.1"],
        "",
        "",
        (("f", '{"a\\\\": "\\\\\\""}'),),
    ),
    "json that is no call": ('{"nam": 1}', None, FORMATS["llama-3.1"], '{"nam": 1}', "", ()),
    "mistral": (
        '[TOOL_CALLS] [{"name": "f", "arguments": {"a": [1]}}, {"name": "g", "arguments": {}}]',
        None,
        FORMATS["mistral-spaced"],
        "",
        "",
        (("f", '{"a": [1]}'), ("g", "{}")),
    ),
    "mistral's newest": (
        'a[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g[ARGS]{}',
        None,
        FORMATS["mistral-args"],
        "a",
        "",
        (("f", '{"a": 1}'), ("g", "{}")),
    ),
    "much space": (
        "a" + " " * 100 + F_CALL,
        None,
        HERMES,
        "a" + " " * (100 - MAX_SPACE),
        "",
        (("f", '{"a": "}\\"{"}'),),
    ),
    "much space first": (" " * 100 + "<think>a", THINK, None, " " * 100 + "<think>a", "", ()),
}


@pytest.mark.parametrize("name", REPLIES)
@settings(deadline=None)
@given(cuts=st.lists(st.integers(0, 300), max_size=40).map(tuple))
def test_a_reply_is_what_it_is_wherever_it_is_cut(name: str, cuts: tuple[int, ...]) -> None:
    text, reasoning, form, content, thought, calls = REPLIES[name]
    expected = ParsedReply(content, thought, tuple(ToolCall("id", *call) for call in calls))
    assert parse(text, reasoning, form, cuts) == expected
    assert parse(text, reasoning, form, tuple(range(len(text)))) == expected


PARTS = [
    F_CALL,
    "<think>",
    "</think>",
    "<tool_call>",
    "\n",
    " ",
    "a",
    '{"name": "',
    "[TOOL_CALLS]",
    "[ARGS]",
    "{}",
    "}]",
]


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(PARTS), max_size=12).map("".join),
    st.sampled_from([None, THINK, OPENED]),
    st.sampled_from([None, *CALL_FORMATS]),
    st.lists(st.integers(0, 300), max_size=30).map(tuple),
)
def test_any_text_reads_the_same_in_pieces_and_in_its_order(
    text: str, reasoning: Reasoning | None, form: CallFormat | None, cuts: tuple[int, ...]
) -> None:
    whole = parse(text, reasoning, form)
    assert parse(text, reasoning, form, cuts) == whole
    rest = iter(text)  # what is said is said in the text's order
    for event in events_of(text, reasoning, form):
        said = event.name if isinstance(event, ToolCallStart) else event.text
        assert all(letter in rest for letter in said)
    if form is None and reasoning is None:
        assert whole.content == text


def test_text_is_given_at_once_where_it_begins_no_mark() -> None:
    parser = ReplyParser(THINK, HERMES)
    assert parser.push("Hello") == [ContentDelta("Hello")]
    assert parser.push(" you <") == [ContentDelta(" you")]
    assert parser.push("b> and <tool") == [ContentDelta(" <b> and")]
    assert parser.push("s>") == [ContentDelta(" <tools>")]


def test_arguments_stream_as_they_come() -> None:
    parser = ReplyParser(THINK, HERMES, lambda: "id")
    assert parser.push("<think>Hm") == [ReasoningDelta("Hm")]
    assert parser.push('</think><tool_call>\n{"name": "f"') == []
    assert parser.push(', "arguments": {"ci') == [ToolCallStart(0, "id", "f"), ToolCallArguments(0, '{"ci')]
    assert parser.push('ty": 1') == [ToolCallArguments(0, 'ty": 1')]
    assert parser.push("}}\n</tool") == [ToolCallArguments(0, "}")]
    assert parser.push("_call>") == [] == parser.finish()


def test_a_long_reply_is_read_once() -> None:
    """Pieces of a token over a megabyte: what is held back stays short."""
    parser = ReplyParser(THINK, HERMES)
    for _ in range(50_000):
        parser.push("a <tool_call> \n      ")
        assert len(parser._held) <= MAX_SPACE + len(HERMES.head)


def test_names_of_calls_are_nine_letters_and_digits() -> None:
    names = {new_call_id() for _ in range(1_000)}
    assert len(names) == 1_000 and all(len(name) == 9 and name.isalnum() and name.isascii() for name in names)


def test_tokens_are_kept_that_a_mark_needs() -> None:
    added = {"<think>": 1, "</think>": 2, "<tool_call>": 3, "[TOOL_CALLS]": 4, "<|end|>": 5}
    assert kept_tokens(added, THINK, HERMES) == {1, 2, 3}
    assert kept_tokens(added, None, FORMATS["mistral"]) == {4}
    assert kept_tokens(added, None, None) == frozenset()


def test_json_of_a_call_parses() -> None:
    (call,) = parse(F_CALL, None, HERMES).calls
    assert json.loads(call.arguments) == {"a": '}"{'}

"""Random replies with tools: whatever the masks allow, the parser reads calls whose arguments are valid."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache

import pytest
from jsonschema import Draft202012Validator
from tokenizers import Tokenizer

from kvfold.runtime.structured.call_formats import CALL_FORMATS, HERMES, CallFormat
from kvfold.runtime.structured.grammar_compiler import Grammar, GrammarCompiler
from kvfold.runtime.structured.grammar_spec import JsonSchema, ToolCalls
from kvfold.runtime.structured.reasoning import Reasoning
from kvfold.runtime.structured.reply_events import ParsedReply, join_events
from kvfold.runtime.structured.reply_parser import ReplyParser
from kvfold.runtime.structured.tools import Tool
from tests.runtime.structured.json_schemas import PERSON
from tests.runtime.structured.random_walks import (
    EOS,
    SPECIAL,
    allowed,
    spell,
    tiny_bpe,
    tiny_compiler,
    vocab_size,
    walk,
)

TOOLS = (
    Tool("add-person", "Adds one.", PERSON),
    Tool(
        "note", parameters={"properties": {"text": {"type": "string", "maxLength": 30}}, "required": ["text"]}
    ),
    Tool("stop"),
)
BY_NAME = {tool.name: tool for tool in TOOLS}
THINK = (None, Reasoning("<think>", "</think>"), Reasoning("<think>", "</think>", opened=True))


def replies(
    grammar: Grammar, form: CallFormat, reasoning: Reasoning | None = None, count: int = 12
) -> Iterator[tuple[str, ParsedReply]]:
    """Texts drawn from a grammar, where marks are likelier than by chance, as the parser reads them."""
    marks = [tiny_bpe().token_to_id(mark) for mark in ("<think>", "</think>", form.mark) if mark in SPECIAL]
    for seed in range(count):
        once = marks if seed % 2 else marks[1:]
        text = spell(walk(grammar.constraint(), seed, (0, 0, 20, 150)[seed % 4], once))
        parser = ReplyParser(reasoning, form)
        pieces = [text[at : at + 3] for at in range(0, len(text), 3)]
        yield text, join_events([event for piece in pieces for event in parser.push(piece)] + parser.finish())


def check_calls(reply: ParsedReply) -> None:
    for call in reply.calls:
        Draft202012Validator(dict(BY_NAME[call.name].schema)).validate(json.loads(call.arguments))


@pytest.mark.parametrize("form", CALL_FORMATS, ids=lambda form: form.name)
@pytest.mark.parametrize("parallel", [True, False])
def test_required_calls_are_calls_and_nothing_else(form: CallFormat, parallel: bool) -> None:
    counts = set()
    for text, reply in replies(tiny_compiler().compile(ToolCalls(TOOLS, "required", parallel, form)), form):
        assert reply.calls and not reply.content, text
        check_calls(reply)
        counts.add(len(reply.calls))
    assert (max(counts) > 1) == (parallel and form.name != "llama-3.1")


@pytest.mark.parametrize("form", CALL_FORMATS, ids=lambda form: form.name)
def test_auto_is_text_or_calls_or_text_and_then_calls(form: CallFormat) -> None:
    called = spoke = 0
    for text, reply in replies(tiny_compiler().compile(ToolCalls(TOOLS, "auto", True, form)), form, count=40):
        check_calls(reply)
        called += bool(reply.calls)
        spoke += bool(reply.content)
        if not reply.calls:
            assert reply.content == text
    assert spoke and (called or form.name == "llama-3.1")  # whose call is one first sign among hundreds


@pytest.mark.parametrize("reasoning", THINK[:2], ids=["none", "closed"])
@pytest.mark.parametrize("form", CALL_FORMATS, ids=lambda form: form.name)
def test_a_reply_that_may_call_is_else_held_to_its_form(
    form: CallFormat, reasoning: Reasoning | None
) -> None:
    spec = ToolCalls(TOOLS, "auto", True, form, JsonSchema(PERSON))
    called = answered = 0
    for text, reply in replies(tiny_compiler().compile(spec, reasoning), form, reasoning, 40):
        check_calls(reply)
        assert bool(reply.calls) != bool(reply.content), text
        called += bool(reply.calls)
        if reply.content:
            Draft202012Validator(PERSON).validate(json.loads(reply.content))
            answered += 1
    assert answered and (called or not form.mark)


@pytest.mark.parametrize("reasoning", THINK[1:], ids=["closed", "opened"])
@pytest.mark.parametrize("choice", ["auto", "required"])
def test_calls_may_come_after_reasoning(choice: str, reasoning: Reasoning) -> None:
    spec = ToolCalls(TOOLS, "required" if choice == "required" else "auto")
    thought = 0
    for text, reply in replies(tiny_compiler().compile(spec, reasoning), HERMES, reasoning, 40):
        check_calls(reply)
        thought += "</think>" in text
        assert "</think>" not in reply.content
    assert thought


@pytest.mark.parametrize("reasoning", THINK[1:], ids=["closed", "opened"])
def test_a_document_may_come_after_reasoning(reasoning: Reasoning) -> None:
    for text, reply in replies(tiny_compiler().compile(JsonSchema(PERSON), reasoning), HERMES, reasoning):
        Draft202012Validator(PERSON).validate(json.loads(reply.content))
        assert (
            reply.reasoning or "</think>" not in text or not text.partition("</think>")[0].strip(" \n<think>")
        )


@cache
def spelling_compiler() -> tuple[Tokenizer, GrammarCompiler]:
    """The same tokenizer for a model that has no marks among its tokens: it spells them."""
    data = json.loads(tiny_bpe().to_str())
    data["added_tokens"] = data["added_tokens"][:1]
    for token in SPECIAL[1:]:
        del data["model"]["vocab"][token]
    renumbered = {token: index for index, token in enumerate(data["model"]["vocab"])}
    data["model"]["vocab"] = renumbered
    tokenizer = Tokenizer.from_str(json.dumps(data))
    return tokenizer, GrammarCompiler(tokenizer.to_str(), vocab_size(), [EOS])


TEXTS = {
    "text": ("Hello <tool_cal> and </tool_call>.", True),
    "nothing": ("", True),
    "call": ('<tool_call>\n{"name": "stop", "arguments": {}}\n</tool_call>', True),
    "text and two calls": (
        'Well.\n<tool_call>\n{"name": "stop", "arguments": {}}\n</tool_call>'
        '\n<tool_call>\n{"name": "note", "arguments": {"text": "</tool_call>"}}\n</tool_call>',
        True,
    ),
    "no call after the mark": ("See <tool_call>", False),
    "unknown tool": ('<tool_call>\n{"name": "go", "arguments": {}}\n</tool_call>', False),
    "wrong arguments": ('<tool_call>\n{"name": "note", "arguments": {}}\n</tool_call>', False),
    "not closed": ('<tool_call>\n{"name": "stop", "arguments": {}}', False),
}


@pytest.mark.parametrize("spells", [False, True], ids=["tokens", "spelled"])
@pytest.mark.parametrize("name", TEXTS)
def test_marks_are_tokens_where_the_model_has_them_and_text_where_not(name: str, spells: bool) -> None:
    text, fits = TEXTS[name]
    tokenizer, compiler = spelling_compiler() if spells else (tiny_bpe(), tiny_compiler())
    constraint = compiler.compile(ToolCalls(TOOLS)).constraint()
    ids = tokenizer.encode(text.replace("</tool_call>.", "</tool_cal>."), add_special_tokens=False).ids
    if name == "text and two calls" and not spells:  # what an argument spells is no token
        ids = spell_last_argument(ids)
    for token in ids:
        if token not in allowed(constraint):
            break
        constraint.accept(token)
    else:
        assert (constraint.finished or EOS in allowed(constraint)) == fits
        return
    assert not fits


def spell_last_argument(ids: list[int]) -> list[int]:
    """The last mark but one as the bytes that spell it."""
    mark = tiny_bpe().token_to_id("</tool_call>")
    at = [index for index, token in enumerate(ids) if token == mark][-2]
    return [*ids[:at], *(tiny_bpe().token_to_id(sign) for sign in "</tool_call>"), *ids[at + 1 :]]


def test_a_mark_that_is_spelled_is_a_call_too() -> None:
    """Else a text could look like a call to its reader, and no grammar would have held its arguments."""
    constraint = tiny_compiler().compile(ToolCalls(TOOLS)).constraint()
    for sign in "x<tool_call>":
        constraint.accept(tiny_bpe().token_to_id(sign))
    assert spell(allowed(constraint).tolist()[:1]) == "\n" and EOS not in allowed(constraint)


def test_without_calls_no_mark_can_come() -> None:
    constraint = tiny_compiler().compile(ToolCalls(TOOLS, "none")).constraint()
    assert not {tiny_bpe().token_to_id(token) for token in SPECIAL[1:]} & set(allowed(constraint).tolist())
    assert EOS in allowed(constraint)


def test_a_tool_alone_is_that_tool() -> None:
    grammar = tiny_compiler().compile(ToolCalls((BY_NAME["stop"],), "required", parallel=False))
    for _, reply in replies(grammar, HERMES):
        assert [(call.name, json.loads(call.arguments)) for call in reply.calls] == [("stop", {})]


def test_a_reply_ends_after_its_only_call() -> None:
    constraint = tiny_compiler().compile(ToolCalls(TOOLS, parallel=False)).constraint()
    text = '<tool_call>\n{"name": "stop", "arguments": {}}\n</tool_call>'
    for token in tiny_bpe().encode(text, add_special_tokens=False).ids:
        constraint.accept(token)
    assert constraint.finished


@pytest.mark.parametrize("spells", [False, True], ids=["tokens", "spelled"])
def test_reasoning_is_marked_by_tokens_or_by_their_text(spells: bool) -> None:
    tokenizer, compiler = spelling_compiler() if spells else (tiny_bpe(), tiny_compiler())
    call = '<tool_call>\n{"name": "stop", "arguments": {}}\n</tool_call>'
    for reasoning, text in [
        (THINK[1], f"<think>\nHm <b>\n</think>\n\n{call}"),
        (THINK[2], f"Hm</think>{call}"),
    ]:
        constraint = compiler.compile(ToolCalls(TOOLS, parallel=False), reasoning).constraint()
        for token in tokenizer.encode(text, add_special_tokens=False).ids:
            assert token in allowed(constraint)
            constraint.accept(token)
        assert constraint.finished

"""A GrammarSpec in llguidance's own language: grammars of JSON schemas and of its variant of Lark."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from kvfold.plugins.contract.errors import RequestError
from kvfold.runtime.structured.grammar_limits import check_bytes, check_rules, write_schema
from kvfold.runtime.structured.grammar_spec import Choice, GrammarSpec, JsonSchema, Lark, Regex, ToolCalls
from kvfold.runtime.structured.reasoning import Reasoning
from kvfold.runtime.structured.tools import Tool

# Else llguidance forces the tokens that its tokenizer makes of a text that must come. Where that text spells
# a control token, or is no normal form of Unicode, those tokens are another text, and the reply would fail.
OPTIONS = '%llguidance {"no_forcing": true}'
# As JSON is printed, in a line or indented: a model that only writes spaces is not allowed to go on.
WHITE_SPACE = r"\x20|\n[\x20\t]{0,80}"
TEXT = "TEXT: /(?s:.*)/"
# What may stand between reasoning and the answer.
GAP = r"GAP: /[ \n]{0,4}/"
_PLACE = re.compile(r"at (\d+)\(")


class GrammarWriter:
    """Writes grammars over one tokenizer's tokens."""

    def __init__(self, special_tokens: Mapping[str, int]) -> None:
        """Over texts that are one token, which no other tokens spell, and their ids."""
        self._special = special_tokens
        spellings = sorted(special_tokens, key=len, reverse=True)
        self._spelled = re.compile("|".join(map(re.escape, spellings)) or r"(?!)")

    def write(self, spec: GrammarSpec, reasoning: Reasoning | None) -> dict[str, Any]:
        """A grammar as LLMatcher takes it; raises RequestError where it is larger than the limits."""
        start = "start: @body" if reasoning is None else self._write_reasoning(reasoning)
        top = {"lark_grammar": f"{OPTIONS}\n{start}"}
        parts = {"body": spec} | (
            {"answer": spec.answer} if isinstance(spec, ToolCalls) and spec.answer else {}
        )
        written = [{"name": name, **self._write_body(part)} for name, part in parts.items()]
        return {"grammars": [top, *written]}

    def _write_body(self, spec: GrammarSpec) -> dict[str, Any]:
        match spec:
            case JsonSchema(schema, strict):
                return {"json_schema": _schema({"type": "object"} if schema is None else schema, strict)}
            case Regex(pattern):
                from llguidance import regex_to_lark

                check_rules("the regex", _encodable("the regex", pattern))
                if (len(pattern) - len(pattern.rstrip("\\"))) % 2:
                    raise RequestError(
                        f"the regex {pattern!r:.80} ends with half an escape; write \\\\ for one"
                    )
                return {"lark_grammar": f"start: /{regex_to_lark(pattern)}/"}
            case Choice(texts):
                if not texts:
                    raise RequestError("the choice has no texts; give it at least one")
                choice = " | ".join(_quote(text) for text in texts)
                check_bytes("the choice", len(choice))
                return {"lark_grammar": f"start: CHOICE\nCHOICE: {choice}"}
            case Lark(grammar):
                check_rules("the grammar", _encodable("the grammar", grammar))
                return {"lark_grammar": grammar}
            case ToolCalls():
                return {"lark_grammar": self._write_calls(spec)}

    def _write_reasoning(self, reasoning: Reasoning) -> str:
        rest = "thought @body" if reasoning.opened else "thought? @body"
        opening = "" if reasoning.opened else "open "
        return "\n".join(
            [
                f"start: {rest}",
                f"thought: {opening}close GAP",
                *([] if reasoning.opened else [self._write_mark("open", "", reasoning.begin)]),
                self._write_mark("close", "TEXT ", reasoning.end),
                TEXT,
                GAP,
            ]
        )

    def _write_mark(self, rule: str, before: str, mark: str) -> str:
        """A rule that ends with a mark at its first occurrence, as a token or spelled by others."""
        plain = f"{rule}_spelled[lazy]: {before}{_quote(mark)}"
        if mark not in self._special:
            return f"{rule}: {rule}_spelled\n{plain}"
        return f"{rule}: {rule}_spelled | {before}<[{self._special[mark]}]>\n{plain}"

    def _write_calls(self, calls: ToolCalls) -> str:
        if not calls.tools:
            raise RequestError("there are no tools to call; give at least one, or no tool_choice")
        if calls.choice == "none":
            return f"start: TEXT\n{TEXT}"
        form = calls.format
        call = f"call {self._repeat(form.separator, calls)}"
        again = ""
        if calls.parallel and form.block_separator is not None:
            again = f"({self._literal(form.block_separator + form.mark)} block)*"
        lines = [  # a tool a line, from the first on: `find_tool_at`
            *self._write_tools(calls),
            f"call: {' | '.join(f'call_{index}' for index in range(len(calls.tools)))}",
            f"block: {self._literal(form.begin)} {call} {self._literal(form.end)}",
            f"calls: block {again}",
        ]
        if calls.choice == "required" or calls.answer is not None:
            answer = "" if calls.choice == "required" else "@answer | "
            lines.append(f"start: {answer}{self._literal(form.mark)} calls")
        elif form.mark:
            lines += ["start: TEXT | head calls", self._write_mark("head", "TEXT ", form.mark), TEXT]
        else:  # a call is known by its first character
            first = re.escape(form.before[0])
            space = r"[ \t\r\n]*"
            lines += ["start: SPACE | PLAIN | calls", f"SPACE: /{space}/"]
            lines.append(rf"PLAIN: /{space}[^ \t\r\n{first}](?s:.*)/")
        return "\n".join(lines)

    def _repeat(self, separator: str | None, calls: ToolCalls) -> str:
        return f"({self._literal(separator)} call)*" if separator is not None and calls.parallel else ""

    def _write_tools(self, calls: ToolCalls) -> list[str]:
        form, size = calls.format, 0
        lines = []
        for index, tool in enumerate(calls.tools):
            before, after = self._literal(form.before + tool.name + form.between), self._literal(form.after)
            arguments = _arguments(tool)
            size += len(arguments)
            lines.append(f"call_{index}: {before} %json {arguments} {after}")
        check_bytes("the parameters of all tools", size)
        return lines

    def _literal(self, text: str) -> str:
        """A text as Lark terms; what of it is one token must be that token."""
        terms, at = [], 0
        for found in self._spelled.finditer(text):
            terms += [_quote(text[at : found.start()]), f"<[{self._special[found.group()]}]>"]
            at = found.end()
        return " ".join(term for term in [*terms, _quote(text[at:])] if term != '""')


def find_tool_at(calls: ToolCalls, message: str) -> Tool | None:
    """The tool whose schema llguidance complains of; None where it is no tool's."""
    place = _PLACE.match(message)
    line = int(place.group(1)) if place else 0
    return calls.tools[line - 1] if 0 < line <= len(calls.tools) else None


def _arguments(tool: Tool) -> str:
    try:
        return json.dumps(_schema(tool.schema, tool.strict))
    except RequestError as error:
        raise RequestError(f"tool {tool.name!r}: {error}") from error


def _schema(schema: Mapping[str, Any], strict: bool) -> Any:
    """A checked schema with options of ours in the place of a stranger's."""
    checked = json.loads(write_schema(schema))
    if isinstance(checked, dict):
        checked["x-guidance"] = {"whitespace_pattern": WHITE_SPACE, "lenient": not strict}
    return checked


def _quote(text: str) -> str:
    return json.dumps(_encodable("a text", text), ensure_ascii=False)


def _encodable(what: str, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"{what} {text!r:.80} is no Unicode text: {error}; send valid UTF-8") from error
    return text

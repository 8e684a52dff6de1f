"""Tools and the choice among them, in the words of three APIs."""

from __future__ import annotations

from typing import Any

import pytest

from kvfold.runtime.server.http import HttpError
from kvfold.runtime.server.wire.fields.ask import ToolUse
from kvfold.runtime.server.wire.fields.tool_fields import Style, tool_use

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}


def tool(style: Style, name: str = "weather") -> dict[str, Any]:
    if style == "messages":
        return {"name": name, "description": "d", "input_schema": SCHEMA}
    function = {"name": name, "description": "d", "parameters": SCHEMA}
    return {"type": "function", "function": function} if style == "chat" else {"type": "function", **function}


def named(style: Style, name: str) -> dict[str, Any]:
    if style == "messages":
        return {"type": "tool", "name": name}
    return (
        {"type": "function", "function": {"name": name}}
        if style == "chat"
        else {"type": "function", "name": name}
    )


STYLES: tuple[Style, ...] = ("chat", "responses", "messages")


def word(style: Style, mode: str) -> Any:
    if style != "messages":
        return mode
    return {"type": "any" if mode == "required" else mode}


@pytest.mark.parametrize("style", STYLES)
def test_the_tools_of_every_api_are_the_same_tools(style: Style) -> None:
    use = tool_use([tool(style)], None, None, style)
    (found,) = use.tools
    assert (found.name, found.description, found.parameters) == ("weather", "d", SCHEMA)
    assert (use.mode, use.only, use.parallel) == ("auto", None, True)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("mode", ["none", "auto", "required"])
def test_a_choice_by_word(style: Style, mode: str) -> None:
    assert tool_use([tool(style)], word(style, mode), False, style).mode == mode


@pytest.mark.parametrize("style", STYLES)
def test_a_choice_by_name_leaves_that_tool_only(style: Style) -> None:
    use = tool_use([tool(style), tool(style, "time")], named(style, "time"), True, style)
    assert (use.mode, [one.name for one in use.callable_tools]) == ("required", ["time"])


@pytest.mark.parametrize("style", ["chat", "responses"])
def test_allowed_tools_are_a_subset(style: Style) -> None:
    allowed = {"mode": "auto", "tools": [named(style, "time")]}
    choice = {"type": "allowed_tools", **({"allowed_tools": allowed} if style == "chat" else allowed)}
    use = tool_use([tool(style), tool(style, "time")], choice, None, style)
    assert (use.mode, [one.name for one in use.callable_tools]) == ("auto", ["time"])


@pytest.mark.parametrize("style", STYLES)
def test_without_tools_nothing_is_called(style: Style) -> None:
    assert tool_use(None, None, None, style) == tool_use([], word(style, "none"), True, style) == ToolUse()


@pytest.mark.parametrize("style", STYLES)
def test_a_call_without_tools_is_refused(style: Style) -> None:
    for choice in (word(style, "required"), named(style, "time")):
        with pytest.raises(HttpError) as caught:
            tool_use([], choice, None, style)
        assert (caught.value.status, caught.value.param) == (400, "tool_choice")


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    "choice", ["sometimes", 3, [], {}, {"type": "allowed_tools", "tools": 3}, {"type": None}]
)
def test_a_choice_that_is_none_is_refused(style: Style, choice: Any) -> None:
    with pytest.raises(HttpError) as caught:
        tool_use([tool(style)], choice, None, style)
    assert (caught.value.status, caught.value.param) == (400, "tool_choice")


@pytest.mark.parametrize("style", STYLES)
def test_a_choice_of_an_unknown_tool_is_refused(style: Style) -> None:
    with pytest.raises(HttpError, match='names "time", which is none of the tools'):
        tool_use([tool(style)], named(style, "time"), None, style)


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"type": "web_search"}, "tools[0]"),
        ("weather", "tools[0]"),
        ({"type": "function", "function": {"name": "a b"}}, "tools[0]"),
        ({"type": "function", "function": {"name": "f", "description": 1}}, "tools[0]"),
        ({"type": "function", "function": {"name": "f", "parameters": []}}, "tools[0]"),
        ({"type": "function", "function": None}, "tools[0].function"),
    ],
)
def test_a_tool_that_is_none_is_refused_by_its_place(wrong: Any, param: str) -> None:
    with pytest.raises(HttpError) as caught:
        tool_use([wrong], None, None, "chat")
    assert caught.value.param == param


def test_two_tools_of_one_name_are_refused() -> None:
    with pytest.raises(HttpError, match="weather twice"):
        tool_use([tool("chat"), tool("chat")], None, None, "chat")

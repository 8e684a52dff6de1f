"""Tools, and the choice among them, as the OpenAI and Anthropic APIs write them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from kvfold.plugins.contract.errors import RequestError
from kvfold.runtime.server.http import HttpError
from kvfold.runtime.server.wire.fields.ask import ToolMode, ToolUse
from kvfold.runtime.server.wire.fields.read_body import describe, wrong
from kvfold.runtime.structured.tools import Tool

# Where a function's name, description and schema stand: OpenAI's chat nests them, its responses do not.
Style = Literal["chat", "responses", "messages"]
MAX_TOOLS = 128
MODES: dict[str, ToolMode] = {"none": "none", "auto": "auto", "required": "required", "any": "required"}


def tool_use(tools: Sequence[Any] | None, choice: Any, parallel: bool | None, style: Style) -> ToolUse:
    """What the model may call; raises HttpError 400 for a tool or choice that cannot be served."""
    found = read_tools(tools or (), style)
    if not found:
        if choice is not None and _kind(choice) not in ("none", "auto"):
            raise wrong(f"is {describe(choice)}, but there are no tools; send tools", "tool_choice")
        return ToolUse()
    mode, only = _choice(choice, style)
    names = {tool.name for tool in found}
    for name in only or ():
        if name not in names:
            raise wrong(f"names {describe(name)}, which is none of the tools", "tool_choice")
    return ToolUse(found, mode, only, parallel is not False)


def read_tools(tools: Sequence[Any], style: Style) -> tuple[Tool, ...]:
    """The functions; raises HttpError 400."""
    if len(tools) > MAX_TOOLS:
        raise wrong(f"has {len(tools)} tools; send at most {MAX_TOOLS}", "tools")
    found = tuple(_tool(tool, f"tools[{at}]", style) for at, tool in enumerate(tools))
    names = [tool.name for tool in found]
    for name in names:
        if names.count(name) > 1:
            raise wrong(f"has {name} twice; give each tool a name of its own", "tools")
    return found


def _tool(tool: Any, param: str, style: Style) -> Tool:
    kind = tool.get("type") if isinstance(tool, dict) else tool
    wanted = (None, "custom") if style == "messages" else ("function",)
    if not isinstance(tool, dict) or kind not in wanted:
        raise wrong(f"is {describe(kind)}; this server runs no tools of its own: send functions", param)
    function = tool.get("function") if style == "chat" else tool
    if not isinstance(function, dict):
        raise wrong(f"is {describe(function)}; send name, description and parameters", f"{param}.function")
    name: Any = function.get("name")
    schema = function.get("input_schema" if style == "messages" else "parameters")
    strict = function.get("strict") is True
    try:
        return Tool(name, function.get("description") or "", schema, strict)
    except RequestError as error:  # it checks the types
        raise HttpError(400, f"{param}: {error}", param=param) from None


def _choice(choice: Any, style: Style) -> tuple[ToolMode, tuple[str, ...] | None]:
    if choice is None:
        return "auto", None
    kind = _kind(choice)
    if kind == "allowed_tools" and style != "messages":
        allowed = choice.get("allowed_tools") if style == "chat" else choice
        if isinstance(allowed, dict) and isinstance(allowed.get("tools"), list):
            mode = allowed.get("mode")
            if mode in ("auto", "required"):
                return MODES[mode], tuple(_chosen(tool, style) for tool in allowed["tools"])
    elif kind == ("tool" if style == "messages" else "function") and isinstance(choice, dict):
        return "required", (_chosen(choice, style),)
    elif isinstance(choice, dict) == (style == "messages"):
        return _mode(choice), None
    raise wrong(f"is {describe(choice)}; use auto, none, required or a function's name", "tool_choice")


def _kind(choice: Any) -> Any:
    return choice.get("type") if isinstance(choice, dict) else choice


def _mode(choice: Any) -> ToolMode:
    kind = _kind(choice)
    if not isinstance(kind, str) or kind not in MODES:
        raise wrong(f"is {describe(choice)}; use auto, none, required or a function's name", "tool_choice")
    return MODES[kind]


def _chosen(choice: Any, style: Style) -> str:
    holder = choice.get("function") if style == "chat" and isinstance(choice, dict) else choice
    name = holder.get("name") if isinstance(holder, dict) else None
    if not isinstance(name, str):
        raise wrong(f"is {describe(choice)}; it names no function", "tool_choice")
    return name

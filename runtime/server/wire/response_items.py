"""Items of a response's input as messages for the template, and those of its output likewise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kvfold.runtime.server.wire.fields.read_body import describe, wrong
from kvfold.runtime.server.wire.fields.template_messages import (
    ROLES,
    TemplateMessage,
    call_of_tool,
    join_parts,
    text_field,
)


def input_messages(given: Any) -> list[TemplateMessage]:
    """A text, or items; raises HttpError 400 for an item that nobody can read."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise wrong(f"is {describe(given)}; send a text or a list of items", "input")
    return item_messages(given)


def item_messages(items: Sequence[Any]) -> list[TemplateMessage]:
    """Items as messages; what the model thought, said and called in a row is one message of it."""
    found: list[TemplateMessage] = []
    for at, item in enumerate(items):
        message = _message(item, f"input[{at}]")
        if message["role"] == "assistant" and found and _goes_on(found[-1], message):
            content, calls = found[-1]["content"] + message["content"], found[-1].get("tool_calls", [])
            calls += message.get("tool_calls", ())
            found[-1] |= message | {"content": content} | ({"tool_calls": calls} if calls else {})
        else:
            found.append(message)
    return found


def _goes_on(last: TemplateMessage, message: TemplateMessage) -> bool:
    """Whether a message of the model belongs to its last one: a text after a text begins anew."""
    return bool(last["role"] == "assistant" and not (last["content"] and message["content"]))


def _message(item: Any, param: str) -> TemplateMessage:
    if not isinstance(item, dict):
        raise wrong(f"is {describe(item)}; send an item", param)
    match item.get("type", "message"):
        case "message":
            role = item.get("role")
            if not isinstance(role, str) or role not in ROLES or role == "tool":
                raise wrong(f"is {describe(role)}; use user, assistant, system or developer", f"{param}.role")
            return {"role": ROLES[role], "content": join_parts(item.get("content"), f"{param}.content")}
        case "function_call":
            texts = [text_field(item, name, param) for name in ("call_id", "name", "arguments")]
            return {"role": "assistant", "content": "", "tool_calls": [call_of_tool(*texts)]}
        case "function_call_output":
            identity = text_field(item, "call_id", param)
            output = join_parts(item.get("output"), f"{param}.output")
            return {"role": "tool", "content": output, "tool_call_id": identity}
        case "reasoning":
            return {"role": "assistant", "content": "", "reasoning_content": _reasoning(item, param)}
        case kind:
            raise wrong(f"is of type {describe(kind)}, which is not served here", param)


def _reasoning(item: dict[str, Any], param: str) -> str:
    parts = item.get("content") or []
    if not isinstance(parts, list):
        raise wrong(f"is {describe(parts)}; send a list", f"{param}.content")
    texts = []
    for at, part in enumerate(parts):
        where = f"{param}.content[{at}]"
        if not isinstance(part, dict):
            raise wrong(f"is {describe(part)}; send a part of type reasoning_text", where)
        texts.append(text_field(part, "text", where))
    return "".join(texts)

"""Messages of OpenAI's chat format as a chat template reads them: texts, calls of tools and their results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kvfold.runtime.server.wire.fields.read_body import describe, wrong

# `developer` is what newer clients call `system`; templates know only the latter.
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
UNREADABLE = ("image_url", "input_image", "image", "input_audio", "audio", "file", "input_file", "video_url")
OPTIONAL_TEXTS = ("name", "tool_call_id", "reasoning_content")

TemplateMessage = dict[str, Any]


def template_messages(messages: Sequence[Any], param: str = "messages") -> list[TemplateMessage]:
    """Messages for the template; raises HttpError for a role, part or call that nobody can read."""
    if not messages:
        raise wrong("is empty; send at least one message", param)
    return [_message(message, f"{param}[{at}]") for at, message in enumerate(messages)]


def join_parts(content: Any, param: str) -> str:
    """The text of a content: a string, or parts that are all text, joined by line breaks."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise wrong(f"is {describe(content)}; send a string or a list of text parts", param)
    return "\n".join(_part(part, f"{param}[{at}]") for at, part in enumerate(content))


def text_field(fields: dict[str, Any], name: str, param: str) -> str:
    """A field that must be a string; raises HttpError."""
    value = fields.get(name)
    if not isinstance(value, str):
        raise wrong(f"is {describe(value)}; send a string", f"{param}.{name}")
    return value


def call_of_tool(identity: str, name: str, arguments: str) -> dict[str, Any]:
    """A call in OpenAI's form; what templates make of its arguments is for later."""
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}


def _message(message: Any, param: str) -> TemplateMessage:
    if not isinstance(message, dict):
        raise wrong(f"is {describe(message)}; send an object with role and content", param)
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        known = ", ".join(ROLES)
        raise wrong(f"is {describe(role)}; use one of {known}", f"{param}.role")
    calls = message.get("tool_calls")
    content = message.get("content")
    if content is None and role == "assistant":
        content = ""
    found: TemplateMessage = {"role": ROLES[role], "content": join_parts(content, f"{param}.content")}
    if role == "assistant" and calls is not None:
        found |= _calls(calls, f"{param}.tool_calls")
    for name in OPTIONAL_TEXTS:
        if message.get(name) is not None:
            found[name] = text_field(message, name, param)
    return found


def _calls(calls: Any, param: str) -> TemplateMessage:
    if not isinstance(calls, list):
        raise wrong(f"is {describe(calls)}; send a list of calls", param)
    return {"tool_calls": [_call(call, f"{param}[{at}]") for at, call in enumerate(calls)]} if calls else {}


def _call(call: Any, param: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise wrong(f"is {describe(call)}; send a call of type function", param)
    identity = text_field(call, "id", param) if call.get("id") is not None else ""
    name = text_field(function, "name", f"{param}.function")
    return call_of_tool(identity, name, text_field(function, "arguments", f"{param}.function"))


def _part(part: Any, param: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(kind, str) and kind in TEXT_PARTS:
        return text_field(part, TEXT_PARTS[kind], param)
    if kind in UNREADABLE:
        raise wrong(f"is of type {kind}, which this model cannot read; send text parts only", param)
    raise wrong(f"is {describe(part)}; send a part of type text", param)

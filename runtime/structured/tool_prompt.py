"""How tools reach the model: by the chat template where it knows tools, else by a text of ours."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvfold.plugins.contract.chat_template import Message, takes_system, takes_tools
from kvfold.plugins.contract.errors import RequestError
from kvfold.runtime.structured.call_formats import CallFormat
from kvfold.runtime.structured.tools import Tool

_INSTRUCTIONS = """You may call functions to help with the user's request. They are, one a line:
<tools>
{tools}
</tools>
To call one, reply with exactly this, its name and its arguments filled in:
{example}"""
_ANSWER = "<tool_response>\n{}\n</tool_response>"


@dataclass(frozen=True)
class ToolChat:
    """A conversation that is ready for the chat template.

    Attributes:
        messages: the conversation.
        tools: for the template; empty where the messages say everything.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()


def prepare_chat(
    template: str | None, messages: Sequence[Message], tools: Sequence[Tool], form: CallFormat
) -> ToolChat:
    """A conversation with tools, calls among its messages and answers to them.

    Args:
        template: the model's chat template.
        messages: in OpenAI's form: an assistant's `tool_calls` have `arguments` as JSON text, an answer has
            the role `tool`.
        tools: what the model may call; none where it shall not know of them.
        form: how it writes a call.

    Raises:
        RequestError: a call among the messages has no name, or arguments that are no JSON object.
    """
    read = tuple(map(_read_calls, messages))
    if takes_tools(template or ""):
        return ToolChat(read, tuple(tool.definition() for tool in tools))
    spelled = _spell(read, form)
    if not tools:
        return ToolChat(spelled)
    role = "system" if takes_system(template or "") else "user"
    return ToolChat(_instruct(spelled, role, describe_tools(tools, form)))


def describe_tools(tools: Sequence[Tool], form: CallFormat) -> str:
    """What a system message says of tools."""
    lines = "\n".join(json.dumps(tool.definition(), ensure_ascii=False) for tool in tools)
    return _INSTRUCTIONS.format(tools=lines, example=_write_call("NAME", "{ARGUMENTS}", form))


def _read_calls(message: Message) -> Message:
    """The message with the arguments of its calls as objects: so templates write them.

    Without calls it has no list of them either: templates ask whether there is one.
    """
    calls = message.get("tool_calls")
    if not calls:
        return {key: value for key, value in message.items() if key != "tool_calls"}
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise RequestError(f"the tool_calls of a message are {calls!r:.80}; send a list of calls")
    return {**message, "tool_calls": [_read_call(call) for call in calls]}


def _read_call(call: Any) -> Mapping[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RequestError(f"a tool call among the messages is {call!r:.80}; give its function a name")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            raise RequestError(
                f"the arguments of a call of {function['name']!r} are {arguments!r:.80}, no JSON: {error}; "
                "send them as the model wrote them"
            ) from error
    if not isinstance(arguments, Mapping):
        raise RequestError(
            f"the arguments of a call of {function['name']!r} are {arguments!r:.80}; send a JSON object"
        )
    return {**call, "function": {**function, "arguments": arguments}}


def _spell(messages: Sequence[Message], form: CallFormat) -> tuple[Message, ...]:
    """A conversation with tools for a template that has never heard of them: all of it is text.

    Answers to calls are the user's words. What he says next goes on from them, as some templates want
    users and assistants in turn.
    """
    spelled: list[Message] = []
    answered = False
    for message in messages:
        words = message.get("content")
        if answered and message.get("role") in ("tool", "user") and isinstance(words, str):
            words = _ANSWER.format(words) if message["role"] == "tool" else words
            spelled[-1] = {"role": "user", "content": f"{spelled[-1]['content']}\n{words}"}
        elif message.get("role") == "tool":
            spelled.append({"role": "user", "content": _ANSWER.format(words or "")})
        elif message.get("tool_calls"):
            spelled.append(_spell_calls(message, form))
        else:
            spelled.append(message)
        answered = message.get("role") == "tool"
    return tuple(spelled)


def _spell_calls(message: Message, form: CallFormat) -> Message:
    functions = [call["function"] for call in message["tool_calls"]]
    written = [
        _write_call(function["name"], json.dumps(function["arguments"], ensure_ascii=False), form)
        for function in functions
    ]
    words = "\n".join(filter(None, [message.get("content") or "", *written]))
    return {"role": message.get("role", "assistant"), "content": words}


def _write_call(name: str, arguments: str, form: CallFormat) -> str:
    return f"{form.head}{name}{form.between}{arguments}{form.after}{form.end}"


def _instruct(messages: tuple[Message, ...], role: str, text: str) -> tuple[Message, ...]:
    """The messages with a text at the end of the first one of a role, or before all, in one of its own."""
    first = messages[0] if messages else {}
    if first.get("role") == role and isinstance(first.get("content"), str):
        return ({**first, "content": f"{first['content']}\n\n{text}"}, *messages[1:])
    return ({"role": role, "content": text}, *messages)

"""Tools as OpenAI's API describes them: functions of a name, a description and a schema of arguments."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvfold.plugins.contract.errors import RequestError

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
NO_ARGUMENTS: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True)
class Tool:
    """A function that the model may ask to be called.

    Attributes:
        name: letters, digits, `_` and `-`, at most 64.
        description: what it does, for the model.
        parameters: JSON schema of its arguments, an object.
        strict: refuse what of the schema cannot be enforced; else that is ignored, and named.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | None = None
    strict: bool = False

    def __post_init__(self) -> None:
        """Raises RequestError where a value cannot be used."""
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise RequestError(
                f"a tool's name is {self.name!r:.80}; use 1 to 64 letters, digits, underscores and dashes"
            )
        if not isinstance(self.description, str):
            raise RequestError(
                f"the description of tool {self.name!r} is {self.description!r:.80}; use a text"
            )
        if self.parameters is None:
            return
        if not isinstance(self.parameters, Mapping):
            raise RequestError(
                f"the parameters of tool {self.name!r} are {self.parameters!r:.80}; use a JSON schema"
            )
        if self.parameters.get("type", "object") != "object":
            raise RequestError(
                f"the parameters of tool {self.name!r} have the type {self.parameters['type']!r:.80}; "
                "arguments are an object"
            )

    @property
    def schema(self) -> Mapping[str, Any]:
        """The schema of its arguments, which says that they are an object."""
        return NO_ARGUMENTS if self.parameters is None else {"type": "object", **self.parameters}

    def definition(self) -> dict[str, Any]:
        """The tool as chat templates expect it."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.schema)}
        return {"type": "function", "function": function}


def read_tools(definitions: Sequence[Any]) -> tuple[Tool, ...]:
    """Tools of a request: `{"type": "function", "function": {"name": ...}}`, or the same without a level.

    Raises:
        RequestError: one is no function, has a wrong value, or a name that another has.
    """
    tools = tuple(map(_read_tool, definitions))
    names = [tool.name for tool in tools]
    for name in names:
        if names.count(name) > 1:
            raise RequestError(f"two tools are called {name!r}; give each a name of its own")
    return tools


def find_tool(tools: Iterable[Tool], name: object) -> Tool:
    """The tool that a request wants called; raises RequestError where there is none of that name."""
    for tool in tools:
        if tool.name == name:
            return tool
    raise RequestError(f"tool_choice names {name!r:.80}, which is none of the tools; name one of them")


def _read_tool(definition: Any) -> Tool:
    if not isinstance(definition, Mapping) or definition.get("type") != "function":
        raise RequestError(
            f'a tool is {definition!r:.80}; use {{"type": "function", "function": {{"name": ...}}}}'
        )
    function = definition.get("function", definition)
    if not isinstance(function, Mapping) or "name" not in function:
        raise RequestError(f"a tool is {definition!r:.80}; give its function a name")
    return Tool(
        function["name"],
        function.get("description") or "",
        function.get("parameters"),
        function.get("strict") is True,
    )

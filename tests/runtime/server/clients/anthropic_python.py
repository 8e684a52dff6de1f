"""Anthropic's Python client, unchanged, against a server: `python anthropic_python.py URL MODEL`."""

from __future__ import annotations

import asyncio
import sys
from typing import Any, Literal

import anthropic
from anthropic import Anthropic, AsyncAnthropic
from pydantic import BaseModel, ConfigDict

CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {"name": "forecast", "description": "Weather.", "input_schema": CITY},
    {"name": "hotels", "input_schema": CITY},
]
GREEDY: Any = {"extra_body": {"temperature": 0}}
ASKED: list[Any] = [{"role": "user", "content": "What will the weather be in Oslo?"}]


class Trip(BaseModel):
    """What a reply is parsed into."""

    model_config = ConfigDict(extra="forbid")
    city: Literal["Rome", "Oslo"]
    rail: bool


def messages(client: Anthropic, model: str) -> None:
    """A reply, its stream, and an error."""
    asked: dict[str, Any] = {"model": model, "messages": ASKED, "max_tokens": 12, **GREEDY}
    made = client.messages.create(**asked, system="Be brief.")
    assert made.role == "assistant" and made.content[0].type == "text"
    assert made.stop_reason in ("end_turn", "max_tokens") and made.usage.output_tokens <= 12
    with client.messages.stream(**asked, system="Be brief.") as stream:
        said = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert said == made.content[0].text and final.stop_reason == made.stop_reason
    assert final.usage.output_tokens == made.usage.output_tokens
    try:
        client.messages.create(**{**asked, "model": "claude-9"})
        raise AssertionError("an unknown model was found")
    except anthropic.NotFoundError as error:
        assert "claude-9" in str(error)


def count(client: Anthropic, model: str) -> None:
    """What a message counts is what it costs."""
    counted = client.messages.count_tokens(model=model, messages=ASKED, tools=TOOLS)
    made = client.messages.create(model=model, messages=ASKED, tools=TOOLS, max_tokens=1)
    usage = made.usage
    assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)


def tools(client: Anthropic, model: str) -> None:
    """Every choice of tools, whole and streamed, and what they give back."""
    asked: dict[str, Any] = {"model": model, "messages": ASKED, "tools": TOOLS, "max_tokens": 400}
    for choice, names in (
        ({"type": "any", "disable_parallel_tool_use": True}, {"forecast", "hotels"}),
        ({"type": "tool", "name": "hotels", "disable_parallel_tool_use": True}, {"hotels"}),
    ):
        made = client.messages.create(**asked, tool_choice=choice)
        (call,) = [block for block in made.content if block.type == "tool_use"]
        assert made.stop_reason == "tool_use" and call.name in names
        assert call.input in ({"city": "Rome"}, {"city": "Oslo"})
        with client.messages.stream(**asked, tool_choice=choice) as stream:
            streamed = [block for block in stream.get_final_message().content if block.type == "tool_use"]
        assert len(streamed) == 1 and streamed[0].input in ({"city": "Rome"}, {"city": "Oslo"})
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "rain"}]}
    turn = [
        *ASKED,
        {"role": "assistant", "content": [block.model_dump() for block in made.content]},
        {"role": "user", "content": [result, {"type": "text", "text": "And now?"}]},
    ]
    after = client.messages.create(**{**asked, "messages": turn}, tool_choice={"type": "none"})
    assert after.stop_reason != "tool_use"


def parse(client: Anthropic, model: str) -> None:
    """A reply as a pydantic model."""
    made = client.messages.parse(model=model, messages=ASKED, output_format=Trip, max_tokens=400)
    assert isinstance(made.parsed_output, Trip)


async def at_once(client: AsyncAnthropic, model: str) -> None:
    """Eight streams at once."""

    async def one(at: int) -> str:
        async with client.messages.stream(model=model, messages=ASKED, max_tokens=16 + at) as stream:
            return (await stream.get_final_message()).stop_reason or ""

    assert set(await asyncio.gather(*map(one, range(8)))) <= {"end_turn", "max_tokens"}


def main(url: str, model: str, *_: str) -> None:
    """All of them; raises at the first that fails."""
    options: dict[str, Any] = {"base_url": url, "api_key": "none", "max_retries": 0}
    client = Anthropic(**options)
    for use in (messages, count, tools, parse):
        use(client, model)
        print(use.__name__)
    asyncio.run(at_once(AsyncAnthropic(**options), model))


if __name__ == "__main__":
    main(*sys.argv[1:])

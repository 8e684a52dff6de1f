"""OpenAI's Python client, unchanged, against a server: `python openai_python.py URL MODEL`."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any, Literal

import openai
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, ConfigDict

CITY = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Rome", "Oslo"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "forecast", "description": "Weather.", "parameters": CITY}},
    {"type": "function", "function": {"name": "hotels", "parameters": CITY}},
]
ASKED: list[Any] = [{"role": "user", "content": "What will the weather be in Oslo?"}]


class Trip(BaseModel):
    """What a reply is parsed into."""

    model_config = ConfigDict(extra="forbid")
    city: Literal["Rome", "Oslo"]
    days: Literal[1, 2, 3]
    rail: bool


def models(client: OpenAI, model: str) -> None:
    """The list, one, and one that is not there."""
    assert [one.id for one in client.models.list()] == [model]
    assert client.models.retrieve(model).owned_by == "kvfold"
    try:
        client.models.retrieve("gpt-9")
        raise AssertionError("an unknown model was found")
    except openai.NotFoundError as error:
        assert error.code == "model_not_found"


def chat(client: OpenAI, model: str) -> None:
    """A reply, several of them, log probabilities, and an error."""
    made = client.chat.completions.create(model=model, messages=ASKED, max_tokens=6, n=2, seed=3)
    assert [choice.index for choice in made.choices] == [0, 1]
    assert made.usage and made.usage.completion_tokens <= 12
    assert made.usage.total_tokens == made.usage.prompt_tokens + made.usage.completion_tokens
    told = client.chat.completions.create(
        model=model, messages=ASKED, max_completion_tokens=4, temperature=0, logprobs=True, top_logprobs=3
    )
    found = told.choices[0].logprobs
    assert found and found.content and all(len(one.top_logprobs) == 3 for one in found.content)
    try:
        client.chat.completions.create(model=model, messages=ASKED, top_p=9)
        raise AssertionError("top_p 9 was taken")
    except openai.BadRequestError as error:
        assert error.param == "top_p"


def chat_stream(client: OpenAI, model: str) -> None:
    """Pieces that join to the whole reply, and the usage at the end."""
    asked: dict[str, Any] = {"model": model, "messages": ASKED, "max_tokens": 12, "temperature": 0}
    whole = client.chat.completions.create(**asked)
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].usage and whole.usage
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def check_calls(calls: list[tuple[str, str]], names: set[str]) -> None:
    """Calls of these tools, with arguments that fit."""
    assert calls
    for name, arguments in calls:
        assert name in names
        given = json.loads(arguments)
        assert given.keys() == {"city", "days"} and given["city"] in ("Rome", "Oslo")
        assert 1 <= given["days"] <= 9


def tools(client: OpenAI, model: str) -> None:
    """Every choice of tools; what a call gives back goes into the next turn."""
    asked: dict[str, Any] = {"model": model, "messages": ASKED, "tools": TOOLS, "max_tokens": 400}
    named = {"type": "function", "function": {"name": "hotels"}}
    for choice, names in (("required", {"forecast", "hotels"}), (named, {"hotels"})):
        made = client.chat.completions.create(**asked, tool_choice=choice, parallel_tool_calls=False)
        call, *others = made.choices[0].message.tool_calls or [None]
        assert (
            call and not others and call.type == "function" and made.choices[0].finish_reason == "tool_calls"
        )
        check_calls([(call.function.name, call.function.arguments)], names)
    answer = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
    turn = [*ASKED, made.choices[0].message.model_dump(exclude_none=True), answer]
    after = client.chat.completions.create(**{**asked, "messages": turn}, tool_choice="none")
    assert after.choices[0].message.tool_calls is None
    free = client.chat.completions.create(**{**asked, "max_tokens": 16}, tool_choice="auto")
    assert free.choices[0].finish_reason in ("stop", "length", "tool_calls")


def tools_stream(client: OpenAI, model: str) -> None:
    """A stream of calls, several at once, put together as the client itself does it."""
    with client.chat.completions.stream(
        model=model, messages=ASKED, tools=TOOLS, tool_choice="required", max_tokens=400, seed=1
    ) as stream:
        kinds = [event.type for event in stream]
        calls = stream.get_final_completion().choices[0].message.tool_calls or []
    assert "tool_calls.function.arguments.delta" in kinds and "tool_calls.function.arguments.done" in kinds
    assert len({call.id for call in calls}) == len(calls)
    whole = calls[:-1] if stream.get_final_completion().choices[0].finish_reason == "length" else calls
    check_calls([(call.function.name, call.function.arguments) for call in whole], {"forecast", "hotels"})


def parse(client: OpenAI, model: str) -> None:
    """A reply as a pydantic model, whole and streamed."""
    made = client.chat.completions.parse(
        model=model, messages=ASKED, response_format=Trip, max_tokens=400, temperature=1
    )
    assert isinstance(made.choices[0].message.parsed, Trip)
    with client.chat.completions.stream(
        model=model, messages=ASKED, response_format=Trip, max_tokens=400
    ) as stream:
        for _ in stream:
            pass
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Trip)
    plain = client.chat.completions.create(
        model=model, messages=ASKED, response_format={"type": "json_object"}, max_tokens=400, seed=1
    )
    if plain.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(plain.choices[0].message.content or ""), dict)


def completions(client: OpenAI, model: str) -> None:
    """Raw prompts: several, as tokens, echoed, scored, streamed."""
    made = client.completions.create(
        model=model, prompt=["Once", "Twice"], max_tokens=4, echo=True, logprobs=2, temperature=0
    )
    assert made.choices[0].text.startswith("Once") and made.choices[1].text.startswith("Twice")
    for choice in made.choices:
        found = choice.logprobs
        assert found and found.tokens and found.token_logprobs and found.text_offset
        assert found.token_logprobs[0] is None and found.text_offset[0] == 0
        assert "".join(found.tokens) == choice.text or "\ufffd" in choice.text
    ids = client.completions.create(model=model, prompt=[[5, 6, 7]], max_tokens=3)
    assert ids.usage and ids.usage.prompt_tokens == 3
    pieces = client.completions.create(model=model, prompt="Once", max_tokens=4, temperature=0, stream=True)
    joined = "".join(piece.choices[0].text for piece in pieces)
    assert made.choices[0].text == "Once" + joined


def responses(client: OpenAI, model: str) -> None:
    """A stored response, what goes on from it, and its end."""
    first = client.responses.create(model=model, input="Hi", max_output_tokens=16, instructions="Be brief.")
    assert first.output_text and first.usage and first.usage.output_tokens <= 16
    again = client.responses.retrieve(first.id)
    assert again.output_text == first.output_text and again.status == first.status
    second = client.responses.create(
        model=model, input="And?", previous_response_id=first.id, max_output_tokens=16
    )
    assert second.previous_response_id == first.id and second.usage
    assert second.usage.input_tokens > first.usage.input_tokens
    client.responses.delete(first.id)
    for use in (client.responses.retrieve, client.responses.cancel):
        try:
            use(first.id)
            raise AssertionError("a deleted response was found")
        except openai.NotFoundError:
            pass


def responses_stream(client: OpenAI, model: str) -> None:
    """A stream of a response, one that is cancelled, tools and a parsed one."""
    with client.responses.stream(model=model, input="Hi", text_format=Trip, max_output_tokens=400) as stream:
        said = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        done = stream.get_final_response()
        assert done.output_text == said and isinstance(done.output_parsed, Trip)
    running = client.responses.create(model=model, input="Hi", stream=True, max_output_tokens=1500)
    last = ""
    for event in running:
        last = event.type
        if last == "response.created":
            client.responses.cancel(event.response.id)
    assert last in ("response.incomplete", "response.completed")
    tool: Any = {"type": "function", "name": "forecast", "parameters": CITY, "strict": True}
    called = client.responses.create(
        model=model, input="Hi", tools=[tool], tool_choice="required", max_output_tokens=400
    )
    calls = [(item.name, item.arguments) for item in called.output if item.type == "function_call"]
    check_calls(calls if called.status == "completed" else calls[:-1] or calls, {"forecast"})
    parsed = client.responses.parse(model=model, input="Hi", text_format=Trip, max_output_tokens=400)
    assert isinstance(parsed.output_parsed, Trip)


async def at_once(client: AsyncOpenAI, model: str) -> None:
    """Sixteen streams at once, of which every second is left in its middle."""

    async def one(at: int) -> int:
        stream = await client.chat.completions.create(
            model=model, messages=ASKED, max_tokens=24, stream=True, seed=at
        )
        pieces = 0
        async for _ in stream:
            pieces += 1
            if at % 2 and pieces == 3:
                await stream.close()
                break
        return pieces

    pieces = await asyncio.gather(*map(one, range(16)))
    assert all(count >= 3 for count in pieces), pieces


def main(url: str, model: str, *_: str) -> None:
    """All of them; raises at the first that fails."""
    options: dict[str, Any] = {"base_url": f"{url}/v1", "api_key": "none", "max_retries": 0}
    client = OpenAI(**options)
    for use in (
        *(models, chat, chat_stream, tools, tools_stream, parse, completions, responses),
        responses_stream,
    ):
        use(client, model)
        print(use.__name__)
    asyncio.run(at_once(AsyncOpenAI(**options), model))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""The official clients, unchanged, against the application: whatever they read is of their own types."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.runtime.server.routes.ask_server import MODEL, Server
from tests.runtime.server.routes.scripted_llm import Script, ScriptedLLM
from tests.runtime.server.routes.test_tool_calls import SCHEMA, TOOLS, make_server

openai = pytest.importorskip("openai", reason="would show that the openai client reads all answers")
anthropic = pytest.importorskip("anthropic", reason="would show that the anthropic client reads all answers")
httpx = pytest.importorskip("httpx2", reason="comes with the openai client")

USER = {"role": "user", "content": "Hi"}


def with_client(kind: Any, server: Server, talk: Callable[[Any], Awaitable[None]]) -> None:
    """Talk through a client whose requests go to the application."""
    base = "http://test" if kind is anthropic.AsyncAnthropic else "http://test/v1"

    async def run() -> None:
        transport = httpx.ASGITransport(app=server.app, raise_app_exceptions=False)
        http = httpx.AsyncClient(transport=transport, base_url=base)
        async with kind(api_key="k", base_url=base, http_client=http, max_retries=0) as client:
            await talk(client)

    asyncio.run(run())


def strict(value: Any) -> Any:
    """The value, once its own type has checked every field, which the client itself does not."""
    return type(value).model_validate(value.model_dump(by_alias=True), strict=False)


def test_openai_chats() -> None:
    async def talk(client: Any) -> None:
        answer = strict(
            await client.chat.completions.create(model=MODEL, messages=[USER], n=2, logprobs=True)
        )
        assert [choice.message.content for choice in answer.choices] == ["Hello wörld!"] * 2
        assert answer.usage.prompt_tokens_details.cached_tokens == 0
        assert answer.choices[0].logprobs.content[0].bytes == [72]
        stream = await client.chat.completions.create(
            model=MODEL, messages=[USER], stream=True, stream_options={"include_usage": True}
        )
        chunks = [strict(chunk) async for chunk in stream]
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Hello wörld!"
        assert chunks[-1].usage.completion_tokens == 13

    with_client(openai.AsyncOpenAI, Server(), talk)


def test_openai_s_stream_helper_puts_calls_together() -> None:
    async def talk(client: Any) -> None:
        async with client.chat.completions.stream(model=MODEL, messages=[USER], tools=TOOLS) as stream:
            async for _ in stream:
                pass
            final = await stream.get_final_completion()
        (call,) = final.choices[0].message.tool_calls
        assert (call.function.name, call.function.arguments) == ("weather", '{"city": "Rome"}')
        assert final.choices[0].finish_reason == "tool_calls"

    with_client(openai.AsyncOpenAI, make_server()[0], talk)


def test_openai_completes() -> None:
    async def talk(client: Any) -> None:
        answer = strict(await client.completions.create(model=MODEL, prompt="a", logprobs=1))
        assert answer.choices[0].logprobs.text_offset[:2] == [0, 1]
        # Not strict: the first token of all has no log probability, which only the type does not know.
        answer = await client.completions.create(model=MODEL, prompt=["a", "b"], echo=True, logprobs=1)
        assert [choice.text for choice in answer.choices] == ["aHello wörld!", "bHello wörld!"]
        stream = await client.completions.create(model=MODEL, prompt="a", stream=True)
        assert "".join([chunk.choices[0].text async for chunk in stream]) == "Hello wörld!"

    with_client(openai.AsyncOpenAI, Server(), talk)


def test_openai_keeps_responses() -> None:
    async def talk(client: Any) -> None:
        tools = [{"type": "function", "name": "weather", "parameters": SCHEMA, "strict": False}]
        first = strict(await client.responses.create(model=MODEL, input="Hi", tools=tools))
        assert [item.type for item in first.output] == ["reasoning", "message", "function_call"]
        stream = await client.responses.create(
            model=MODEL, input="And?", previous_response_id=first.id, stream=True, tools=tools
        )
        events = [strict(event) async for event in stream]
        assert events[-1].type == "response.completed"
        again = strict(await client.responses.retrieve(events[-1].response.id))
        assert again.output_text == "See:"
        await client.responses.delete(again.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(again.id)

    with_client(openai.AsyncOpenAI, make_server()[0], talk)


def test_openai_s_response_stream_helper_accumulates() -> None:
    async def talk(client: Any) -> None:
        async with client.responses.stream(model=MODEL, input="Hi") as stream:
            async for _ in stream:
                pass
            final = await stream.get_final_response()
        assert final.output_text == "Hello wörld!"

    with_client(openai.AsyncOpenAI, Server(), talk)


def test_openai_lists_models_and_raises_our_errors() -> None:
    async def talk(client: Any) -> None:
        assert [strict(model).id for model in (await client.models.list()).data] == [MODEL]
        with pytest.raises(openai.NotFoundError) as caught:
            await client.chat.completions.create(model="gpt", messages=[USER])
        assert caught.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(model=MODEL, messages=[USER], temperature=-1)
        assert refused.value.param == "temperature"

    with_client(openai.AsyncOpenAI, Server(), talk)


def test_openai_raises_an_error_within_a_stream() -> None:
    async def talk(client: Any) -> None:
        stream = await client.chat.completions.create(model=MODEL, messages=[USER], stream=True)
        with pytest.raises(openai.APIError, match="inside the server"):
            async for _ in stream:
                pass

    with_client(openai.AsyncOpenAI, Server(ScriptedLLM(Script(["a"], error=ValueError("x")))), talk)


def test_anthropic_sends_messages() -> None:
    async def talk(client: Any) -> None:
        answer = strict(await client.messages.create(model=MODEL, max_tokens=9, messages=[USER]))
        assert (answer.content[0].text, answer.stop_reason) == ("Hello wörld!", "end_turn")
        count = await client.messages.count_tokens(model=MODEL, messages=[USER], system="Be brief.")
        assert strict(count).input_tokens == 40
        with pytest.raises(anthropic.NotFoundError):
            await client.messages.create(model="claude", max_tokens=9, messages=[USER])

    with_client(anthropic.AsyncAnthropic, Server(), talk)


def test_anthropic_s_stream_helper_puts_blocks_together() -> None:
    async def talk(client: Any) -> None:
        tools = [{"name": "weather", "input_schema": SCHEMA}]
        async with client.messages.stream(model=MODEL, max_tokens=99, messages=[USER], tools=tools) as stream:
            async for _ in stream:
                pass
            final = await stream.get_final_message()
        assert [block.type for block in final.content] == ["thinking", "text", "tool_use"]
        assert final.content[2].input == {"city": "Rome"}
        assert (final.stop_reason, final.usage.output_tokens > 0) == ("tool_use", True)

    with_client(anthropic.AsyncAnthropic, make_server()[0], talk)


def test_anthropic_raises_an_error_within_a_stream() -> None:
    async def talk(client: Any) -> None:
        with pytest.raises(anthropic.APIStatusError, match="server stops"):
            async with client.messages.stream(model=MODEL, max_tokens=9, messages=[USER]) as stream:
                async for _ in stream:
                    pass

    script = Script(["a"], finish="cancelled", more={"cancel_reason": "drain"})
    with_client(anthropic.AsyncAnthropic, Server(ScriptedLLM(script)), talk)

"""A server of OpenAI's API that says words it counts, and misbehaves where a prompt asks for it.

In a test's own loop by `serving`, or as a process that drains at SIGTERM: `python FILE PORT [KEY=VALUE ...]`.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

PAGES = 100


@dataclass
class FakeServer:
    """What it is like, and what it saw.

    Attributes:
        delay: seconds a token.
        form_delay: the same of a reply that is held to a form.
        at_most: requests at once; more are told 429.
        refusal: what they are told instead.
        loses: pages that are lost with each client that leaves, from the fifth on.
        grows: bytes that each request leaves behind.
        drops: whether SIGTERM cuts what runs.
        stubborn: whether SIGTERM does nothing.
        bodies: of requests, parsed.
        at_once: now.
        most_at_once: ever.
        left: clients that hung up.
    """

    delay: float = 0.0
    form_delay: float = 0.0
    at_most: int = 1000
    refusal: int = 429
    loses: int = 0
    grows: int = 0
    drops: bool = False
    stubborn: bool = False
    bodies: list[dict[str, Any]] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    left: int = 0
    lost: int = 0
    draining: bool = False
    kept: list[bytearray] = field(default_factory=list)

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 24)
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/health/ready", self.ready)
        app.router.add_get("/metrics", self.metrics)
        app.router.add_get("/v1/kvfold/requests", self.requests)
        for path in ("/v1/completions", "/v1/chat/completions"):
            app.router.add_post(path, self.reply)
        return app

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "fake"}]})

    async def ready(self, request: web.Request) -> web.Response:
        return web.Response(status=503 if self.draining else 200)

    async def metrics(self, request: web.Request) -> web.Response:
        used = self.at_once + self.lost
        lines = [
            f'kvfold:pool_pages{{group="global",state="{s}"}} {n}.0' for s, n in (("used", used), ("idle", 0))
        ]
        lines.append(f'vllm:num_requests_running{{model_name="fake"}} {self.at_once}.0')
        return web.Response(text="\n".join(["# TYPE kvfold:pool_pages gauge", *lines, ""]))

    async def requests(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{}] * self.at_once})

    async def reply(self, request: web.Request) -> web.StreamResponse:
        if self.draining:
            return refuse(503, "draining")
        try:
            body = json.loads(await request.read())
        except ValueError as error:
            return refuse(400, str(error))
        self.bodies.append(body)
        if body.get("max_tokens", 1) < 0 or body["model"] != "fake":
            return refuse(400, "bad")
        if self.at_once >= self.at_most:
            return refuse(self.refusal, "busy", {"Retry-After": "7"})
        self.kept.append(bytearray(self.grows))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            return await self._reply(request, body)
        except (asyncio.CancelledError, ConnectionError):
            self.left += 1
            self.lost += self.loses if self.left > 4 else 0
            raise
        finally:
            self.at_once -= 1

    async def _reply(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        chat = "messages" in body
        wish = str(body["messages"][-1]["content"] if chat else body["prompt"])
        texts = words_of(body["max_tokens"], len(body["messages"]) if chat else 0)
        count = sum(len(m["content"].split()) for m in body["messages"]) if chat else len(body["prompt"])
        usage = {
            "prompt_tokens": count,
            "completion_tokens": len(texts),
            "prompt_tokens_details": {"cached_tokens": count // 2},
        }
        if wish == "page":
            return web.Response(text="<html>", content_type="text/html")
        if wish == "fault":
            return web.Response(status=500, text="oops")
        if not body.get("stream"):
            await asyncio.sleep(self.delay * len(texts))
            said: dict[str, Any] = (
                {"message": {"content": "".join(texts)}} if chat else {"text": "".join(texts)}
            )
            return web.json_response({"choices": [{**said, "finish_reason": "length"}], "usage": usage})
        delay = self.form_delay if "response_format" in body else self.delay
        return await self._stream(request, chat, wish, texts, usage, delay)

    async def _stream(
        self,
        request: web.Request,
        chat: bool,
        wish: str,
        texts: list[str],
        usage: dict[str, Any],
        delay: float,
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)

        async def send(data: str) -> None:
            raw = f": a comment\n\ndata: {data}\n\n".encode()
            for part in (raw[:25], raw[25:]):  # an event may come in two pieces
                await response.write(part)

        if chat:
            await send(json.dumps({"choices": [{"delta": {"role": "assistant", "content": ""}}]}))
        for number, text in enumerate(texts):
            await asyncio.sleep(delay)
            if wish == "break" and number == 2:
                assert request.transport is not None
                request.transport.abort()
                return response
            if wish == "error" and number == 2:
                await send(json.dumps({"error": {"message": "the engine failed"}}))
                return response
            await send(json.dumps({"choices": [{"delta": {"content": text}} if chat else {"text": text}]}))
        if wish != "no finish":
            await send(json.dumps({"choices": [{"delta": {}, "finish_reason": "length"}]}))
        await send(json.dumps({"choices": [], "usage": usage}))
        if wish != "no done":
            await send("[DONE]")
        return response


def words_of(count: int, salt: int) -> list[str]:
    return [f" w{salt}.{number}" for number in range(count)]


def refuse(status: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.json_response({"error": {"message": message}}, status=status, headers=headers)


@asynccontextmanager
async def serving(server: FakeServer, port: int = 0) -> AsyncIterator[str]:
    """The address of a server in this loop."""
    runner = web.AppRunner(server.app(), handler_cancellation=True, shutdown_timeout=0.05)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    try:
        yield "http://{}:{}".format(*runner.addresses[0][:2])
    finally:
        await runner.cleanup()


async def main(port: int, server: FakeServer) -> None:
    ending = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ending.set)
    async with serving(server, port):
        await ending.wait()
        while server.stubborn:
            await asyncio.sleep(1)
        server.draining = True
        while server.at_once and not server.drops:
            await asyncio.sleep(0.01)


def fake_command(**options: float) -> tuple[str, ...]:
    """How to start it as a process; `{port}` stands for the port."""
    return (sys.executable, __file__, "{port}", *(f"{key}={value}" for key, value in options.items()))


if __name__ == "__main__":
    values = {key: json.loads(value) for key, value in (option.split("=") for option in sys.argv[2:])}
    asyncio.run(main(int(sys.argv[1]), FakeServer(**values)))

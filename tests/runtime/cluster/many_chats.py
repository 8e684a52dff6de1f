"""Conversations of several turns, many at once, by a client that knows nothing of replicas."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.runtime.server.processes.real_server import MODEL

# Letters only, in the order of ByteLevel's alphabet: a reply's text must read as the tokens that it was.
PLAIN_TEXT = {str(token): -100 for token in range(256) if not 64 <= token < 90}


@dataclass
class ManyChats:
    """What came of them.

    Attributes:
        name: other chats of that name have the same prefixes; of another name, none.
        texts: of replies, by chat and turn.
        broken: streams that did not come to their end, and requests that failed.
        asked: prompt tokens.
        cached: of these, reused.
    """

    name: str = ""
    texts: dict[tuple[int, int], str] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    asked: int = 0
    cached: int = 0

    @property
    def hit_rate(self) -> float:
        """Share of prompt tokens that were reused."""
        return self.cached / self.asked

    async def run(
        self,
        url: str,
        chats: int,
        turns: int,
        at_once: int,
        tokens: int = 24,
        meanwhile: Callable[[int], None] = lambda _: None,
        rest: float = 0.0,
    ) -> None:
        """Turn by turn, so many seconds apart; `meanwhile` hears of each reply's beginning."""
        conversations: list[list[dict[str, str]]] = [[] for _ in range(chats)]
        gate = asyncio.Semaphore(at_once)
        begun = 0

        async def turn(session: aiohttp.ClientSession, chat: int, number: int) -> None:
            nonlocal begun
            async with gate:
                meanwhile(begun)
                begun += 1
                said = conversations[chat]
                said.append(
                    {"role": "user", "content": f"{self.name} {chat} says {'so much more ' * 4}{number}"}
                )
                text = await self._stream(session, url, chat, said, tokens)
                self.texts[chat, number] = text
                said.append({"role": "assistant", "content": text})

        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            for number in range(turns):
                await asyncio.sleep(rest if number else 0)
                await asyncio.gather(*(turn(session, chat, number) for chat in range(chats)))

    async def _stream(
        self, session: aiohttp.ClientSession, url: str, chat: int, messages: list[dict[str, str]], tokens: int
    ) -> str:
        value = {
            **{"model": MODEL, "messages": messages, "max_tokens": tokens, "temperature": 0},
            **{"logit_bias": PLAIN_TEXT},
            **{"stream": True, "stream_options": {"include_usage": True}},
        }
        # Every second one is a session.
        headers = {"x-session-id": f"{self.name}-{chat}"} if chat % 2 else {}
        text, done = "", False
        try:
            async with session.post(f"{url}/v1/chat/completions", json=value, headers=headers) as response:
                if response.status != 200:
                    self.broken.append(f"{response.status} {await response.text()}")
                    return text
                async for line in response.content:
                    data = line.decode().strip().removeprefix("data: ")
                    done |= data == "[DONE]"
                    if data and data != "[DONE]" and not data.startswith(":"):
                        text += self._count(json.loads(data))
        except (aiohttp.ClientError, OSError, KeyError) as error:
            self.broken.append(repr(error))
            return text
        if not done:
            self.broken.append("no end")
        return text

    def _count(self, event: dict[str, Any]) -> str:
        usage = event.get("usage")
        if usage:
            self.asked += usage["prompt_tokens"]
            self.cached += usage["prompt_tokens_details"]["cached_tokens"]
        choices = event["choices"]
        return choices[0]["delta"].get("content", "") if choices else ""

"""A relay over replicas with real sockets: a replica dies, and the client reads one stream, the same as ever."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.cluster.local_cluster import LocalCluster, local_cluster
from tests.runtime.cluster.stream_story import stream_story
from tests.runtime.server.asgi_client import JSON, Answer, Exchange, until

CHAT = {
    "messages": [{"role": "user", "content": "tell me a long story"}],
    **{"max_tokens": 48, "stream": True, "temperature": 0.8, "top_p": 0.9, "seed": 7},
}


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(test(), 60)

    asyncio.run(limited())


async def post(cluster: LocalCluster, path: str, value: Any, headers: dict[str, str] | None = None) -> Answer:
    exchange = Exchange(
        cluster.relay, "POST", path, json.dumps(value).encode(), {**JSON, "host": "localhost", **(headers or {})}
    )
    return await exchange.end()


@pytest.mark.parametrize("after", [1, 2, 5, 9])
def test_a_stream_goes_on_on_another_replica(tmp_path: Path, after: int) -> None:
    async def test() -> None:
        async with local_cluster(tmp_path) as cluster:
            whole = await post(cluster, "/v1/chat/completions", CHAT)
            exchange = Exchange(
                cluster.relay, "POST", "/v1/chat/completions", json.dumps(CHAT).encode(), {**JSON, "host": "localhost"}
            )
            await until(lambda: len(exchange.answer.parts) >= after)
            cluster.kill(cluster.busy().name)
            cut = await exchange.end()
            assert stream_story(cut.body) == stream_story(whole.body)

    run(test)

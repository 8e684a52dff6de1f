"""A relay asks a replica again for what was lost on the way from it: it is no other request."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.cluster.local_cluster import local_cluster
from tests.runtime.cluster.stream_story import stream_story
from tests.runtime.cluster.test_relay import ASKED, begin, post, run

RESPONSE = ASKED["response"][1]


@pytest.mark.parametrize(
    ("name", "headers"), [("chat", {}), ("chat", {"x-session-id": "s"}), ("response", {})]
)
def test_a_stream_goes_on_where_its_connection_was_cut(
    tmp_path: Path, name: str, headers: dict[str, str]
) -> None:
    async def test() -> None:
        async with local_cluster(tmp_path, replicas=1) as cluster:
            whole = stream_story((await post(cluster, *ASKED[name])).body)
            exchange = begin(cluster, *ASKED[name], headers)
            await cluster.cut_after(9)
            assert stream_story((await exchange.end()).body) == whole

    run(test)


@pytest.mark.parametrize("name", ["chat", "message", "response", "completion"])
def test_a_whole_reply_that_a_replica_stops_is_asked_for_elsewhere(tmp_path: Path, name: str) -> None:
    path, value = ASKED[name]
    value = {**value, "stream": False}

    async def test() -> None:
        async with local_cluster(tmp_path) as cluster:
            whole = (await post(cluster, path, value)).json()
            exchange = begin(cluster, path, value)
            replica = await cluster.busy_after(9)
            del cluster.replicas[replica.name]
            closing = asyncio.create_task(replica.served.close())
            await asyncio.sleep(1.2)  # it lets replies run for a second
            cluster.gate.allow(math.inf)
            await closing
            answer = await exchange.end()
            assert answer.status == 200
            for part in ("choices", "content", "status"):
                assert answer.json().get(part) == whole.get(part)

    run(test)


def test_a_stored_response_is_written_anew_and_can_be_asked_for(tmp_path: Path) -> None:
    async def test() -> None:
        async with local_cluster(tmp_path, replicas=1) as cluster:
            value: dict[str, Any] = {**RESPONSE, "stream": False}
            exchange = begin(cluster, "/v1/responses", value)
            await cluster.cut_after(9)
            answer = await exchange.end()
            assert answer.status == 200
            next_one = {**value, "previous_response_id": answer.json()["id"]}
            assert (await post(cluster, "/v1/responses", next_one)).status == 200

    run(test)

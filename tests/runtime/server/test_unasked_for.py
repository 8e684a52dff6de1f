"""A real uvicorn on a free port: requests behind others, offers of other protocols, two lengths at once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.runtime.server.asgi_client import until
from tests.runtime.server.guard.listening_server import GET, POST, Impatient, listening, run

OFFER = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AA\r\n"
STREAM = POST + b'content-length: 16\r\n\r\n{"stream": true}'
WHOLE = POST + b"content-length: 2\r\n\r\n{}"


@pytest.mark.parametrize(
    "framed", [b"content-length: 2\r\n\r\n{}", b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"]
)
@pytest.mark.parametrize("cut", [None, -1, -2, 5])
def test_an_offer_of_http_2_is_declined_and_the_body_read(framed: bytes, cut: int | None) -> None:
    async def test() -> None:
        async with listening() as server:
            client = await server.connect()
            request = POST + OFFER + framed
            for _ in range(2):
                if cut is not None:
                    at = cut if cut < 0 else len(request) - len(framed) + framed.index(b"\r\n\r\n") + cut
                    client.writer.write(request[:at])
                    await client.writer.drain()
                    await until(lambda: True)
                status, _, value = await client.ask(request if cut is None else request[at:])
                assert (status, value) == (200, {"text": "abc"})
            assert (await client.ask(GET + OFFER + b"\r\n"))[0] == 200
            assert (await client.ask(GET + b"\r\n"))[0] == 200, "the connection goes on"

    run(test)


def test_offers_behind_one_another_are_all_answered() -> None:
    async def test() -> None:
        async with listening() as server:
            client = await server.connect()
            offered = POST + OFFER + b"content-length: 2\r\n\r\n{}"
            client.writer.write(offered + GET + OFFER + b"\r\n" + offered + WHOLE)
            assert [(await client.answer())[0] for _ in range(4)] == [200] * 4

    run(test)


@pytest.mark.parametrize(
    "lengths",
    [
        b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"content-length: 2\r\ncontent-length: 3\r\n\r\n{} ",
        b"content-length: 2, 2\r\n\r\n{}",
        b"content-length: +2\r\n\r\n{}",
        b"transfer-encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
        b"transfer-encoding : chunked\r\n\r\n0\r\n\r\n",
        b"transfer-encoding: chunked\r\n\r\n0x2\r\n{}\r\n0\r\n\r\n",
        b"transfer-encoding: chunked\r\n\r\n2\n{}\n0\n\n",
        b"x: a\n\ncontent-length: 2\r\n\r\n{}",
    ],
)
@pytest.mark.parametrize("offer", [b"", OFFER])
def test_a_length_that_can_be_read_in_two_ways_is_refused(lengths: bytes, offer: bytes) -> None:
    """Else a proxy before us and we could disagree on where the next request begins."""

    async def test() -> None:
        async with listening() as server:
            client = await server.connect()
            assert (await client.ask(POST + offer + lengths + GET + b"\r\n"))[0] == 400
            assert await client.closed()

    run(test)


@pytest.mark.parametrize("body", [STREAM, WHOLE])
@pytest.mark.parametrize("together", [True, False])
def test_a_client_that_leaves_with_a_request_behind_another_cancels_the_first(
    body: bytes, together: bool
) -> None:
    async def test() -> None:
        async with listening() as server:
            server.llm.go.clear()
            client = await server.connect()
            client.writer.write(body + (WHOLE if together else b""))
            await until(lambda: server.llm.replies)
            client.writer.write(b"" if together else WHOLE)
            await client.writer.drain()
            client.writer.close()
            await until(lambda: server.llm.replies[0].cancelled == "client")
            await until(lambda: server.connections == 0)
            assert server.state.admission.inside == 0 and len(server.llm.replies) == 1

    run(test)


def test_nothing_is_put_into_an_answer_that_is_on_its_way() -> None:
    async def test() -> None:
        async with listening() as server:
            server.llm.go.clear()
            client = await server.connect()
            client.writer.write(STREAM + WHOLE)
            await client.reader.readuntil(b"\r\n\r\n")
            client.writer.write(b"no request\r\n\r\n")
            assert await client.closed()
            await until(lambda: server.llm.replies[0].cancelled == "client")

    run(test)


def test_what_is_no_request_behind_one_ends_that_one_quietly(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with listening() as server:
            server.llm.go.clear()
            client = await server.connect()
            client.writer.write(WHOLE)
            await until(lambda: server.llm.replies)
            assert (await client.ask(b"no request\r\n\r\n"))[0] == 400
            await until(lambda: server.llm.replies[0].cancelled == "client")
            server.llm.go.set()
            await until(lambda: server.connections == 0)

    run(test)
    assert "Exception" not in caplog.text


def test_requests_behind_one_another_are_not_read_without_end() -> None:
    async def test() -> None:
        class Few(Impatient):
            max_pipelined = 4

        async with listening(protocol=Few) as server:
            server.llm.go.clear()
            client = await server.connect()
            client.writer.write(WHOLE)
            await until(lambda: server.llm.replies)
            connection: Any = next(iter(server.uvicorn.server_state.connections))
            for sent in range(12):
                client.writer.write(GET + b"\r\n")
                await until(lambda sent=sent: len(connection.pipeline) == min(sent + 1, Few.max_pipelined))
            server.llm.go.set()
            assert [(await client.answer())[0] for _ in range(13)] == [200] * 13

    run(test)


def test_bodies_behind_a_request_that_runs_are_not_read_without_end() -> None:
    async def test() -> None:
        async with listening() as server:
            server.llm.go.clear()
            client = await server.connect()
            client.writer.write(WHOLE)
            await until(lambda: server.llm.replies)
            connection: Any = next(iter(server.uvicorn.server_state.connections))
            client.writer.write((POST + b"content-length: 60000\r\n\r\n{}" + b" " * 59_998) * 50)
            await until(lambda: connection.flow.read_paused)
            await asyncio.sleep(0.1)
            held = sum(len(cycle.body) for cycle, _ in connection.pipeline)
            assert connection.flow.read_paused and 0 < held < 2**19
            server.llm.go.set()
            assert [(await client.answer())[0] for _ in range(51)] == [200] * 51

    run(test)


@pytest.mark.parametrize("rest", [b"1000\r\n" + b" " * 4096 + b"\r\n", b"no chunk\r\n"])
def test_a_request_that_was_answered_before_its_end_gets_no_second_answer(rest: bytes) -> None:
    async def test() -> None:
        class Small(Impatient):
            max_message_bytes = 2000

        async with listening(protocol=Small) as server:
            client = await server.connect()
            status, _, _ = await client.ask(
                b"PUT" + POST[4:] + b"transfer-encoding: chunked\r\n\r\n1\r\n \r\n"
            )
            assert status == 405
            client.writer.write(rest)
            assert await client.closed()

    run(test)

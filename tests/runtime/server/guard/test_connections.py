"""A real uvicorn on a free port: heads, bodies and readers that misbehave."""

from __future__ import annotations

import asyncio

import pytest

from tests.runtime.server.asgi_client import until
from tests.runtime.server.guard.listening_server import GET, POST, Impatient, listening, run
from tests.runtime.server.puppet_llm import PuppetLLM


def test_requests_follow_one_another_on_a_connection() -> None:
    async def test() -> None:
        async with listening() as server:
            client = await server.connect()
            for _ in range(3):
                status, _, value = await client.ask(POST + b"content-length: 2\r\n\r\n{}")
                assert (status, value) == (200, {"text": "abc"})
            status, _, _ = await client.ask(GET + b"\r\n" + GET + b"\r\n")
            assert status == 200 and (await client.answer())[0] == 200

    run(test)


def test_a_stream_arrives_piece_by_piece() -> None:
    async def test() -> None:
        async with listening() as server:
            server.llm.go.clear()
            client = await server.connect()
            client.writer.write(POST + b'content-length: 16\r\n\r\n{"stream": true}')
            head = await client.reader.readuntil(b"\r\n\r\n")
            assert b"text/event-stream" in head
            server.llm.go.set()
            await client.reader.readuntil(b"data: a\n\n")
            await client.reader.readuntil(b"0\r\n\r\n")

    run(test)


@pytest.mark.parametrize(
    "head",
    [
        GET + b"x: " + b"a" * 20_000 + b"\r\n\r\n",
        GET + b"".join(b"x%d: a\r\n" % number for number in range(2000)) + b"\r\n",
        b"GET /things/1?" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n",
    ],
)
def test_a_head_that_is_too_long_is_431(head: bytes) -> None:
    async def test() -> None:
        async with listening() as server:
            client = await server.connect()
            status, headers, value = await client.ask(head)
            assert (status, headers["connection"]) == (431, "close")
            assert value["error"]["type"] == "invalid_request_error"
            assert await client.closed()

    run(test)


def test_half_a_header_counts_as_it_arrives() -> None:
    async def test() -> None:
        async with listening() as server:
            client = await server.connect()
            client.writer.write(GET + b"x: ")
            await asyncio.sleep(0.02)
            assert (await client.ask(b"a" * 20_000))[0] == 431

    run(test)


def test_who_goes_on_sending_after_a_refusal_is_ended() -> None:
    async def test() -> None:
        async with listening() as server:
            client = await server.connect()
            assert (await client.ask(b"no HTTP\r\n\r\n"))[0] == 400
            with pytest.raises(ConnectionError):
                while True:
                    client.writer.write(b"x" * 10_000)
                    await client.writer.drain()
                    await asyncio.sleep(0)
            await until(lambda: server.connections == 0)

    run(test)


def test_trailers_count_as_headers() -> None:
    async def test() -> None:
        async with listening() as server:
            client = await server.connect()
            client.writer.write(POST + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n")
            assert (await client.ask(b"x: aaaaaaaaaaaaaaaaaaaa\r\n" * 1000))[0] == 431

    run(test)


def test_frames_of_tiny_chunks_count() -> None:
    async def test() -> None:
        class Small(Impatient):
            max_message_bytes = 100_000

        async with listening(protocol=Small) as server:
            client = await server.connect()
            client.writer.write(POST + b"transfer-encoding: chunked\r\n\r\n")
            status, _, value = await client.ask(b"1;" + b"x" * 100 + b"\r\n \r\n" + b"1\r\n \r\n" * 20_000)
            assert status == 413 and "100000 bytes" in value["error"]["message"]

    run(test)


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 10,
        b"CONNECT localhost:80 HTTP/1.1\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nx: \x00\r\n\r\n",
        b"POST /say HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
        b"POST /say HTTP/1.1\r\ncontent-length: -5\r\n\r\n",
        b"POST /say HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
    ],
)
def test_what_is_no_http_is_400(data: bytes) -> None:
    async def test() -> None:
        async with listening() as server:
            client = await server.connect()
            assert (await client.ask(data))[0] == 400
            assert await client.closed()

    run(test)


@pytest.mark.parametrize(
    "path", [b"/%ff%zz", b"//", b"/things/%00", b"/?" + b"%" * 100, b"http://localhost/nothing"]
)
def test_an_odd_path_is_an_answer_like_others(path: bytes) -> None:
    async def test() -> None:
        async with listening() as server:
            client = await server.connect()
            status, _, _ = await client.ask(b"GET " + path + b" HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert status == (200 if path == b"/things/%00" else 404)

    run(test)


def test_a_client_that_says_nothing_or_half_a_head_is_closed() -> None:
    async def test() -> None:
        async with listening() as server:
            silent, half = await server.connect(), await server.connect()
            half.writer.write(GET)
            assert await silent.closed() and await half.closed()
            await until(lambda: server.connections == 0)

    run(test)


def test_connections_are_bounded() -> None:
    async def test() -> None:
        class Patient(Impatient):
            head_seconds = 10

        async with listening(protocol=Patient) as server:
            inside = [await server.connect() for _ in range(3)]
            await until(lambda: server.connections == 3)
            refused = await server.connect()
            status, headers, _ = await refused.answer()
            assert (status, headers["retry-after"]) == (503, "1")
            inside[0].writer.close()
            await until(lambda: server.connections == 2)
            assert (await (await server.connect()).ask(GET + b"\r\n"))[0] == 200

    run(test)


def test_an_answer_before_the_end_of_a_body_is_read_by_a_client_that_sends_all_first() -> None:
    async def test() -> None:
        async with listening() as server:
            client = await server.connect()
            client.writer.write(b"PUT" + POST[4:] + b"content-length: 500000\r\n\r\n")
            for _ in range(50):
                client.writer.write(b" " * 10_000)
                await client.writer.drain()
            assert (await client.answer())[0] == 405
            assert (await client.ask(GET + b"\r\n"))[0] == 200, "the connection goes on"

    run(test)


def test_a_body_that_stops_after_its_answer_ends_the_connection() -> None:
    async def test() -> None:
        async with listening() as server:
            client = await server.connect()
            status, _, _ = await client.ask(b"PUT" + POST[4:] + b"content-length: 500000\r\n\r\n ")
            assert status == 405 and await client.closed()

    run(test)


def test_a_long_body_is_413_over_the_wire() -> None:
    async def test() -> None:
        async with listening() as server:
            client = await server.connect()
            status, headers, _ = await client.ask(POST + b"content-length: 999999999999\r\n\r\n")
            assert (status, headers["connection"]) == (413, "close")
            assert await client.closed()

    run(test)


@pytest.mark.parametrize(
    ("method", "framing", "expected"),
    [
        (b"POST", b"content-length: 20971520", 413),
        (b"PUT", b"content-length: 20971520", 405),
        (b"POST", b"transfer-encoding: chunked", 413),
    ],
)
def test_the_answer_to_a_body_far_beyond_the_limit_is_read_by_a_client_that_sends_all_first(
    method: bytes, framing: bytes, expected: int
) -> None:
    async def test() -> None:
        class Patient(Impatient):
            discard_seconds = 20

        async with listening(protocol=Patient) as server:
            client = await server.connect()
            client.writer.write(method + POST[4:] + framing + b"\r\n\r\n")
            part = b" " * 2**20
            for _ in range(20):
                client.writer.write(b"100000\r\n%s\r\n" % part if b"chunked" in framing else part)
                await client.writer.drain()
            status, headers, _ = await client.answer()
            assert (status, headers["connection"]) == (expected, "close")
            assert await client.closed()

    run(test)


def test_a_client_that_closes_cancels_its_reply() -> None:
    async def test() -> None:
        async with listening() as server:
            server.llm.go.clear()
            client = await server.connect()
            client.writer.write(POST + b'content-length: 16\r\n\r\n{"stream": true}')
            await client.reader.readuntil(b"\r\n\r\n")
            client.writer.close()
            await until(lambda: server.llm.replies[0].cancelled == "client")
            await until(lambda: server.connections == 0)
            assert server.state.admission.inside == 0

    run(test)


def test_a_client_that_never_reads_is_dropped_and_its_reply_cancelled() -> None:
    async def test() -> None:
        async with listening(PuppetLLM(["x" * 100_000] * 1000)) as server:
            client = await server.connect(receive_bytes=4096)
            client.writer.write(POST + b'content-length: 16\r\n\r\n{"stream": true}')
            await until(lambda: server.llm.replies)
            await until(lambda: server.llm.replies[0].cancelled == "client")
            await until(lambda: server.connections == 0)
            assert server.state.admission.inside == 0

    run(test)


def test_a_stream_whose_text_piles_up_is_cut_at_once(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        class Patient(Impatient):
            write_seconds = 60

        async with listening(PuppetLLM(["x" * 100_000] * 1000), Patient) as server:
            client = await server.connect(receive_bytes=4096)
            client.writer.write(POST + b'content-length: 16\r\n\r\n{"stream": true}')
            await until(lambda: server.llm.replies)
            server.llm.replies[0].unread_characters = 2**21
            await until(lambda: server.llm.replies[0].cancelled == "client")
            await until(lambda: server.connections == 0)
        assert "without completing" not in caplog.text

    run(test)

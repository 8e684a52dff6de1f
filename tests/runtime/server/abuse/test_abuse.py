"""A whole server, from sockets to pages, under requests, bytes and clients that are wrong.

Never an error of ours, never a silence, never a prompt in the log; afterwards it serves as before, and holds
nothing.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from random import Random
from time import monotonic, sleep
from typing import Any

import pytest

from tests.runtime.server.abuse.valid_requests import MESSAGES, SECRET, VALID
from tests.runtime.server.abuse.wrong_bytes import misbehave
from tests.runtime.server.abuse.wrong_requests import wrong_request
from tests.runtime.server.processes.spawned_server import ServerProcess, real_server

CASES = 1000
SECONDS = 30.0
MOST = 16 * 2**20  # more is not even read to its end


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with real_server(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def server(process: ServerProcess) -> Iterator[ServerProcess]:
    """The server; after the test it is ready, runs nothing, told no secret and knows of no bug."""
    yield process
    assert process.ask("GET", "/health/ready")[0] == 200
    wait_until_nothing_runs(process)
    log = process.log
    assert SECRET not in log
    assert "Traceback" not in log and "ERROR" not in log, log[log.index("ERROR") :][:4000]


def wait_until_nothing_runs(server: ServerProcess) -> None:
    """That all pages are there is counted at the server's end: responses and sessions keep some till then."""
    end = monotonic() + SECONDS
    while json.loads(server.ask("GET", "/v1/kvfold/requests")[1])["data"]:
        assert monotonic() < end, "a reply runs, and nobody is there"
        sleep(0.01)


def test_a_valid_request_is_served(server: ServerProcess) -> None:
    """Else those that are made from it would all be wrong for one reason. What has an id is not there yet."""
    refused = [
        (method, path, answer)
        for method, path, body in VALID
        if (answer := server.ask(method, path, body))[0] not in (200, 201)
    ]
    assert all("resp_1" in path or path.endswith("/1") for _, path, _ in refused[1:]), refused
    assert b"resp_1" in refused[0][2][1]


def test_a_wrong_request_is_refused_or_served(server: ServerProcess) -> None:
    connection = HTTPConnection("127.0.0.1", server.port, timeout=SECONDS)
    statuses = set()
    for seed in range(CASES):
        method, path, body, headers = wrong_request(Random(seed))
        if len(body or b"") > MOST:
            continue
        connection.request(method, path, body, {"content-type": "application/json", **headers})
        response = connection.getresponse()
        answer = response.read()
        assert response.status < 500 and b"server_error" not in answer, (seed, answer[:2000])
        if response.status >= 400 and method != "HEAD":
            assert json.loads(answer)["error"]["message"], seed
        statuses.add(response.status)
    assert {200, 400, 404, 405} <= statuses


def test_wrong_bytes_are_answered_or_left(server: ServerProcess) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda seed: misbehave(server.port, Random(seed)), range(2 * CASES)))
    statuses = {status for statuses in found for status in statuses}
    assert {200, 400, 431} <= statuses <= {100, 200, 400, 403, 404, 405, 413, 415, 431}


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"model": "gpt-9", "messages": MESSAGES}, 404, "gpt-9"),
        ({"messages": [{"role": "wizard", "content": "a"}]}, 400, "wizard"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "cannot read"),
        ({"messages": [{"role": "user", "content": "a" * 4000}]}, 400, "4019 tokens, the context 2048"),
        ({"messages": [{"role": "user", "content": "a" * 40_000}]}, 400, "40000 characters; 2048 tokens"),
        (b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}', 400, "no JSON"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', 400, "no JSON"),
        (b'{"messages": ' + b"[" * 500_000, 400, "nested too deeply"),
        (b'{"messages": ' + b'{"a":' * 400_000, 400, "nested too deeply"),
        (b'{"seed": ' + b"9" * 1_000_000 + b"}", 400, "out of range"),
        (b" " * (3 * 2**20), 413, "2097152 bytes"),
        ({"messages": MESSAGES, "n": 129}, 400, "n is 129"),
        ({"messages": MESSAGES, "tools": [{"type": "web_search"}]}, 400, "send functions"),
        ({"messages": MESSAGES, "guided_regex": "(" * 5}, 400, "unclosed group"),
        ({"messages": MESSAGES, "response_format": {"type": "json_schema"}}, 400, "json_schema"),
    ],
)
def test_bad_input_is_named(server: ServerProcess, body: Any, status: int, said: str) -> None:
    found, answer = server.ask("POST", "/v1/chat/completions", body)
    assert (found, said in json.loads(answer)["error"]["message"]) == (status, True), answer


@pytest.mark.parametrize("prompt", [10, 1900])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("seconds", [0.0, 0.01, 0.2])
def test_a_client_that_leaves_leaves_nothing(
    server: ServerProcess, prompt: int, stream: bool, seconds: float
) -> None:
    """Before its head is read, in its prefill, in its decode: whenever that is."""
    asked = {"prompt": SECRET + "a" * prompt, "max_tokens": 100, "stream": stream, "ignore_eos": True}
    body = json.dumps(asked).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    clients = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(6)]
    for at, client in enumerate(clients):
        client.sendall(head + b"content-length: %d\r\n\r\n" % len(body) + body)
        sleep(seconds / (at + 1))
        client.close()
    wait_until_nothing_runs(server)


def test_a_client_that_never_reads_is_left_and_others_are_served(server: ServerProcess) -> None:
    body = b'{"prompt": "a", "max_tokens": 2000, "stream": true, "n": 8, "logprobs": 20, "ignore_eos": true}'
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", server.port))
        client.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        )
        client.sendall(b"content-length: %d\r\n\r\n" % len(body) + body)
        for _ in range(3):
            status, _ = server.ask("POST", "/v1/completions", {"prompt": "a", "max_tokens": 8})
            assert status == 200
    wait_until_nothing_runs(server)

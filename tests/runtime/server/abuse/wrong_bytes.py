"""What comes over a socket that is no request, or almost one: cut, broken, several at once, never read."""

from __future__ import annotations

import socket
import struct
from random import Random

from tests.runtime.server.abuse.valid_requests import SECRET

BODY = b'{"prompt": "%s", "max_tokens": 40, "stream": true}' % SECRET.encode()
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
LENGTH = b"Content-Length: %d\r\n\r\n" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
CHUNKS = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (BODY[:9], BODY[9:])) + b"0\r\n\r\n"
GET = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
MESSAGES = (
    HEAD + LENGTH + BODY,
    HEAD + CHUNKED + CHUNKS,
    HEAD.replace(b"1.1", b"1.0") + LENGTH + BODY,
    HEAD + b"Expect: 100-continue\r\n" + LENGTH + BODY,
    HEAD + b"Connection: close\r\n" + LENGTH + BODY,
    HEAD + LENGTH.replace(b"\r\n\r\n", b"\r\n") + CHUNKED + CHUNKS,  # two lengths: a smuggler's
    HEAD + b"Content-Length: 1\r\n" + LENGTH + BODY,
    HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + CHUNKS,
    HEAD + b"Content-Length: -1\r\n\r\n" + BODY,
    HEAD + b"Content-Length: 99999999999999999999999\r\n\r\n" + BODY,
    HEAD + b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: eA==\r\n" + LENGTH + BODY,
    HEAD + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n" + LENGTH + BODY,
    HEAD.replace(b"/v1/completions", b"http://evil/v1/completions") + LENGTH + BODY,
    HEAD.replace(b"Host: localhost", b"Host: localhost\r\nHost: evil") + LENGTH + BODY,
    HEAD.replace(b"Host: localhost\r\n", b"") + LENGTH + BODY,
    HEAD + b"X: a\r\n folded\r\n" + LENGTH + BODY,
    HEAD + b"X\x00Y: a\x00b\r\n" + LENGTH + BODY,
    HEAD + b"X: " + b"a" * 15_000 + b"\r\n" + LENGTH + BODY,
    HEAD + b"X: " + b"a" * 40_000 + b"\r\n" + LENGTH + BODY,
    GET * 40,
    GET + HEAD + LENGTH + BODY + GET,
    (HEAD + LENGTH + BODY) * 3,
    b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"CONNECT localhost:1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(30),
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET\r\n\r\n",
    b"\r\n" * 50 + GET,
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
)


def wrong_bytes(rng: Random) -> bytes:
    """A message, often with a mistake in it, or cut."""
    data = bytearray(rng.choice(MESSAGES))
    for _ in range(rng.choice([0, 0, 1, 1, 4])):
        at = rng.randrange(len(data))
        match rng.choice(["flip", "cut", "insert", "drop"]):
            case "flip":
                data[at] = rng.randrange(256)
            case "cut":
                del data[at + 1 :]
            case "insert":
                data[at:at] = rng.choice([b"\r\n", b"\r", b"\n", b"\x00", b" ", b":", b"\xff", b"9" * 30])
            case _:
                del data[at : at + rng.randrange(1, 9)]
        if not data:
            return b"\r\n"
    return bytes(data)


def misbehave(port: int, rng: Random) -> list[int]:
    """Send some wrong bytes, read some of what comes, leave somehow; the statuses that came."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        data = wrong_bytes(rng)
        received = b""
        try:
            for _ in range(rng.choice([1, 1, 3])):
                cut = rng.randrange(len(data) + 1)
                client.sendall(data[:cut])
                data = data[cut:]
            client.sendall(data)
            client.settimeout(rng.choice([0.001, 0.02, 0.1]))
            match rng.choice(["read", "half-close", "reset", "leave"]):
                case "read":
                    received = read(client)
                case "half-close":
                    client.shutdown(socket.SHUT_WR)
                    received = read(client)
                case "reset":
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError:  # it need not listen to that
            pass
    lines = received.split(b"\r\n")
    return [int(line[9:12]) for line in lines if line.startswith(b"HTTP/1.") and line[9:12].isdigit()]


def read(client: socket.socket) -> bytes:
    """What comes until it ends, or rests."""
    received = b""
    try:
        while part := client.recv(65536):
            received += part
    except OSError:
        pass
    return received

"""A relay's side of ASGI: a request's body, a client that leaves, an answer that is whole."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from kvfold.runtime.server.http import MAX_BODY_BYTES, HttpError, Message, Receive, Send, openai_error
from kvfold.runtime.server.streaming import body


async def read_body(receive: Receive) -> bytes | None:
    """All of it; None where the client left before its end. Raises HttpError 413."""
    content = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        content += message.get("body", b"")
        if len(content) > MAX_BODY_BYTES:
            raise HttpError(413, f"the body is longer than {MAX_BODY_BYTES} bytes; send less")
        if not message.get("more_body"):
            return bytes(content)


async def wait_until_gone(receive: Receive) -> None:
    """Until the client leaves, after its body was read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def send_error(send: Send, error: HttpError) -> None:
    """An error in OpenAI's form."""
    await send_whole(send, error.status, msgspec.json.encode(openai_error(error)), error.headers)


async def send_whole(send: Send, status: int, content: bytes, headers: Mapping[str, str]) -> None:
    """A JSON answer."""
    lines = {"content-type": "application/json", "content-length": str(len(content)), **headers}
    encoded = [(name.encode(), value.encode()) for name, value in lines.items()]
    head: Message = {"type": "http.response.start", "status": status, "headers": encoded}
    await send(head)
    await send(body(content, more=False))

"""What a relay reads of a request: whose conversation it is, how long, and whether it asks for a reply."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import msgspec

from kvfold.runtime.server.http import HttpError
from kvfold.runtime.server.relayed import RELAY_FIELD, Relayed
from kvfold.runtime.server.wire.fields.sampling_fields import SESSION_HEADER

SESSIONS, RESPONSES = "/v1/kvfold/sessions", "/v1/responses"
GENERATES = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/messages", RESPONSES})
BYTES_PER_TOKEN = 4
# Raw prompts that begin with the same so many bytes are one conversation.
PROMPT_BYTES = 512
# Of a response's id, as `read_route` makes it.
_KEY = re.compile(r"resp_([0-9a-f]{16})")


class _Message(msgspec.Struct):
    role: Any = None


class _Fields(msgspec.Struct):
    """What tells conversations apart; of any kind, as a replica may not even look at it."""

    session_id: Any = None
    previous_response_id: Any = None
    messages: msgspec.Raw = msgspec.Raw(b"")
    system: msgspec.Raw = msgspec.Raw(b"")
    instructions: msgspec.Raw = msgspec.Raw(b"")
    input: msgspec.Raw = msgspec.Raw(b"")
    prompt: msgspec.Raw = msgspec.Raw(b"")


_DECODER = msgspec.json.Decoder(_Fields)
_MESSAGES = msgspec.json.Decoder(list[msgspec.Raw])
_MESSAGE = msgspec.json.Decoder(_Message)
_NO_JSON = (msgspec.DecodeError, UnicodeDecodeError)
_ENCODER = msgspec.json.Encoder()


@dataclass(frozen=True)
class Read:
    """A request as a relay sees it.

    Attributes:
        key: of its conversation, 64 bits.
        tokens: about how many its prompt has.
        body: as it came, or with what replicas need to name a new session alike.
        relayed: what must be the same wherever it runs; None where it asks for no reply.
    """

    key: int
    tokens: int
    body: bytes
    relayed: Relayed | None = None

    def body_for(self, relayed: Relayed | None) -> bytes:
        """The body with what a relay says; only of a request that asks for a reply."""
        if relayed is None:
            return self.body
        return _with_field(self.body, RELAY_FIELD, relayed)


def read_route(method: str, path: str, headers: Mapping[str, str], body: bytes) -> Read:
    """Read a request; one that is no JSON is left for a replica to refuse.

    Raises:
        HttpError: 400 it is nested so deeply that a replica alone might read it.
    """
    who = (headers.get("authorization") or headers.get("x-api-key", "")).encode()
    tokens = len(body) // BYTES_PER_TOKEN
    fields = _fields(body) if method == "POST" else None
    if path in GENERATES and fields is not None:
        key = _key_of(fields, headers, who)
        # The key stands in the response's id, so that whoever asks for the response finds its replica.
        relayed = Relayed(
            id=f"{key:016x}{secrets.token_hex(8)}", created=int(time.time()), seed=secrets.randbits(63)
        )
        return Read(key, tokens, body, relayed)
    if path == SESSIONS and fields is not None:
        given = fields.session_id is not None
        name = _text(fields.session_id) if given else f"sess_{secrets.token_hex(16)}"
        named = body if given else _with_field(body or b"{}", "session_id", name)
        return Read(_hash(who, b"session", name.encode()), tokens, named)
    kind, _, name = path.rpartition("/")
    if kind == SESSIONS:
        return Read(_hash(who, b"session", name.encode()), tokens, body)
    if path.startswith(f"{RESPONSES}/"):
        return Read(_key_of_response(path.split("/")[3]), tokens, body)
    return Read(secrets.randbits(64), tokens, body)


def _fields(body: bytes) -> _Fields | None:
    try:
        return _DECODER.decode(body or b"{}")
    except _NO_JSON:
        return None
    except RecursionError:  # a field of the client's own may say what only we may say
        raise HttpError(400, "the body is nested too deeply; send flatter JSON") from None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _key_of(fields: _Fields, headers: Mapping[str, str], who: bytes) -> int:
    session = _text(fields.session_id) or headers.get(SESSION_HEADER)
    if session:
        return _hash(who, b"session", session.encode())
    if previous := _text(fields.previous_response_id):
        return _key_of_response(previous)
    begin = [fields.system, fields.instructions, *_first_messages(fields.messages)]
    prompts = (bytes(prompt)[:PROMPT_BYTES] for prompt in (fields.input, fields.prompt))
    return _hash(who, b"", *map(bytes, begin), *prompts)


def _first_messages(given: msgspec.Raw) -> list[msgspec.Raw]:
    """Up to the user's first: conversations often share what the system says."""
    try:
        messages = _MESSAGES.decode(given)
    except _NO_JSON:
        return []
    for at, message in enumerate(messages):
        if _role(message) == "user":
            return messages[: at + 1]
    return messages


def _role(message: msgspec.Raw) -> Any:
    try:
        return _MESSAGE.decode(message).role
    except _NO_JSON:
        return None


def _key_of_response(name: str) -> int:
    match = _KEY.match(name)
    return int(match[1], 16) if match else _hash(name.encode())


def _hash(*parts: bytes) -> int:
    digest = blake2b(digest_size=8)
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return int.from_bytes(digest.digest(), "big")


def _with_field(body: bytes, name: str, value: object) -> bytes:
    """A JSON object with one more field, which counts where it has one of that name already."""
    inside = body.strip()[:-1]
    comma = b"" if inside.strip() == b"{" else b","
    return b'%b%b"%b":%b}' % (inside, comma, name.encode(), _ENCODER.encode(value))

"""The bytes of a session's file: records that are appended, each with a checksum over all before it.

A file that was cut anywhere, or in which a bit flipped, still has the whole records in front of that place:
those count. A record that was lost, doubled or moved breaks the chain as a changed one does.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from kvfold.plugins.contract.errors import SessionError

# A name, and the version of the format in the last byte.
MAGIC = b"kvfold session\0\1"
_LENGTH = struct.Struct("<I")
_DIGEST_BYTES = 16
_HEAD_BYTES = _LENGTH.size + _DIGEST_BYTES


@dataclass(frozen=True)
class End:
    """Where a log's whole records end.

    Attributes:
        at: bytes of the file up to there; what is behind does not count.
        digest: the next record's checksum begins from it.
    """

    at: int
    digest: bytes


START = End(0, MAGIC)


def read_log(data: bytes) -> tuple[list[bytes], End]:
    """The payloads of the whole records at the front of a file, and their end.

    Raises:
        SessionError: the file is of another version.
    """
    name, version = data[: len(MAGIC) - 1], data[len(MAGIC) - 1 : len(MAGIC)]
    if name == MAGIC[:-1] and version not in (b"", MAGIC[-1:]):
        raise SessionError(
            f"it has version {version[0]} of the format, and this kvfold reads {MAGIC[-1]}; use the kvfold "
            "that wrote it, or delete it"
        )
    payloads: list[bytes] = []
    end = START
    while True:
        at = end.at or len(MAGIC)
        head = data[at : at + _HEAD_BYTES]
        if data[: len(MAGIC)] != MAGIC or len(head) < _HEAD_BYTES:
            return payloads, end
        (length,) = _LENGTH.unpack_from(head)
        payload = data[at + _HEAD_BYTES : at + _HEAD_BYTES + length]
        digest = _chain(end.digest, payload)
        if len(payload) < length or head[_LENGTH.size :] != digest:
            return payloads, end
        payloads.append(payload)
        end = End(at + _HEAD_BYTES + length, digest)


def add_records(end: End, payloads: Sequence[bytes]) -> tuple[bytes, End]:
    """What to write at a log's end to make these its next records, and the end that it then has."""
    data = MAGIC if end == START else b""
    digest = end.digest
    for payload in payloads:
        digest = _chain(digest, payload)
        data += _LENGTH.pack(len(payload)) + digest + payload
    return data, End(end.at + len(data), digest)


def _chain(before: bytes, payload: bytes) -> bytes:
    """A checksum of a payload, its length included, and of all before it."""
    return hashlib.blake2b(payload, digest_size=_DIGEST_BYTES, key=before).digest()

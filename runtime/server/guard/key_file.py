"""The file of keys: hashes of keys, whose they are and what they may do.

    {"keys": [
      {"name": "alice", "sha256": "<64 hex digits>", "tenant": "research",
       "roles": ["inference"], "max_concurrent": 8}
    ]}

`tenant` is the name when left out, `roles` is inference alone, `max_concurrent` no limit of its own.
A new key and its hash:

    key=$(openssl rand -hex 32); echo "$key"; printf %s "$key" | sha256sum

An entry with the hash of nothing is for who sends no key: with the role `probe`, readiness probes.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from pathlib import Path

import msgspec

from kvfold.plugins.contract.errors import RequestError
from kvfold.runtime.server.caller import Caller, Role

_HASH = re.compile(r"[0-9a-f]{64}")


class KeyEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A key as the file has it."""

    name: str
    sha256: str
    tenant: str | None = None
    roles: tuple[Role, ...] = ("inference",)
    max_concurrent: int | None = None


class KeyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file."""

    keys: tuple[KeyEntry, ...]


class Keys:
    """Who has which key."""

    def __init__(self, entries: tuple[KeyEntry, ...]) -> None:
        """Over checked entries."""
        self._callers = tuple(
            (
                bytes.fromhex(entry.sha256),
                Caller(entry.name, tenant_of(entry), frozenset(entry.roles), entry.max_concurrent),
            )
            for entry in entries
        )

    def __len__(self) -> int:
        """How many keys there are."""
        return len(self._callers)

    def find(self, key: str) -> Caller | None:
        """Whose key this is; takes as long for one key as for another."""
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        found = None
        for known, caller in self._callers:
            if hmac.compare_digest(known, digest):
                found = caller
        return found


def tenant_of(entry: KeyEntry) -> str:
    """Whose prefixes a key reuses."""
    return entry.name if entry.tenant is None else entry.tenant


def read_keys(path: Path) -> Keys:
    """Read a file of keys; raises RequestError where it cannot be read or is not what it should be."""
    try:
        entries = msgspec.json.decode(path.read_bytes(), type=KeyFile).keys
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"the keys in {path} cannot be read: {error}") from error
    for problem in _problems(entries):
        raise RequestError(f"the keys in {path} are refused: {problem}")
    return Keys(entries)


def _problems(entries: tuple[KeyEntry, ...]) -> list[str]:
    found = [] if entries else ["there is none; a server nobody may ask needs no start"]
    for entry in entries:
        if not entry.name or not entry.name.isprintable():
            found.append(f"a name is {entry.name!r}; give each key a name for the log")
        if not _HASH.fullmatch(entry.sha256):
            found.append(
                f"sha256 of {entry.name!r} is {entry.sha256!r:.80}; write 64 hex digits in lower case"
            )
        if not tenant_of(entry):
            found.append(f"tenant of {entry.name!r} is empty; name one or leave it out")
        if not entry.roles:
            found.append(f"{entry.name!r} has no roles; give it inference, admin, metrics or probe")
        if entry.max_concurrent is not None and entry.max_concurrent < 1:
            found.append(f"max_concurrent of {entry.name!r} is {entry.max_concurrent}; use at least 1")
    for field in ("name", "sha256"):
        values = [getattr(entry, field) for entry in entries]
        if len(set(values)) < len(values):
            found.append(f"two keys have the same {field}")
    return found

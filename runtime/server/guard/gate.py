"""The gate: every request passes it before its handler runs."""

from __future__ import annotations

import logging
from collections import Counter
from hmac import compare_digest
from pathlib import Path

from kvfold.plugins.contract.errors import RequestError
from kvfold.runtime.server.caller import ANYONE, Access, Caller, may
from kvfold.runtime.server.guard.key_file import Keys, read_keys
from kvfold.runtime.server.guard.loopback import host_of, is_loopback
from kvfold.runtime.server.http import HttpError, Request
from kvfold.runtime.server.relayed import RELAY_HEADER

LOG = logging.getLogger("kvfold.server")


class Gate:
    """Finds whose key a request came with, and lets in who may."""

    def __init__(self, path: Path | None = None, relay_key: str | None = None) -> None:
        """With a file of keys, or open to all; raises RequestError as `read_keys`.

        Args:
            path: the file of keys.
            relay_key: what a relay in front proves itself by. Without keys, nothing else is let in.
        """
        self._path = path
        self._relay_key = relay_key
        self._keys: Keys | None = None if path is None else read_keys(path)
        self._inside: Counter[str] = Counter()
        self._entered: set[Request] = set()

    def reload(self) -> None:
        """Read the file again; the old keys stay where the new file is bad. Requests inside go on."""
        if self._path is None:
            return
        try:
            self._keys = read_keys(self._path)
        except RequestError as error:
            LOG.error("%s; the keys from before stay", error)
        else:
            LOG.info("%d keys from %s", len(self._keys), self._path)

    def enter(self, request: Request, access: Access) -> None:
        """Let a request in, and note whose it is.

        Raises:
            HttpError: 401 it has no key that is known; 403 its key may not do this; 429 the key has as many
                requests inside as it may.
        """
        if access == "anyone":
            return
        request.from_relay = self._is_from_our_relay(request)
        caller = request.caller = self._caller(request)
        if not may(caller, access):
            needed = "a role but probe" if access == "any key" else f"the role {access}"
            raise HttpError(403, f"the key {caller.name!r} may not do this; it needs {needed}")
        if caller.max_concurrent is not None and self._inside[caller.name] >= caller.max_concurrent:
            raise HttpError(
                429,
                f"the key {caller.name!r} may have {caller.max_concurrent} requests at once",
                code="too_many_requests",
                headers={"retry-after": "1"},
            )
        self._inside[caller.name] += 1
        self._entered.add(request)

    def leave(self, request: Request) -> None:
        """A request has ended, whether it was let in or not."""
        if request in self._entered:
            self._entered.discard(request)
            self._inside[request.caller.name] -= 1

    def _is_from_our_relay(self, request: Request) -> bool:
        """False without a relay; raises HttpError 503 for one of another deployment."""
        given = request.headers.get(RELAY_HEADER)
        if self._relay_key is None or given is None:
            return False
        if not compare_digest(given.encode(), self._relay_key.encode()):
            raise HttpError(503, "this is a server behind another relay", headers={"retry-after": "1"})
        return True

    def _caller(self, request: Request) -> Caller:
        if self._keys is None:
            if self._relay_key is not None and not request.from_relay:
                raise HttpError(403, "this is a server behind a relay; ask the relay")
            _refuse_other_hosts(request)
            return ANYONE
        _refuse_repeated(request, b"authorization", b"x-api-key")
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        key = bearer.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")
        caller = self._keys.find(key)
        if caller is None:
            raise HttpError(
                401,
                "no key, or one that is unknown; send `Authorization: Bearer KEY` or `x-api-key: KEY`",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        return caller


def _refuse_other_hosts(request: Request) -> None:
    """Without keys only this machine is served, so a name that is not its own comes from a page that lies."""
    _refuse_repeated(request, b"host")
    host = request.headers.get("host", "localhost")
    if not is_loopback(host_of(host)):
        raise HttpError(
            403,
            f"the host is {host!r:.100}; a server without keys answers to localhost and loopback addresses",
        )


def _refuse_repeated(request: Request, *names: bytes) -> None:
    """Two of a header are read differently by a proxy and by us."""
    for name in names:
        if sum(other == name for other, _ in request.scope["headers"]) > 1:
            raise HttpError(400, f"the header {name.decode()} came more than once; send it once")

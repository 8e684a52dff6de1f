"""What the cache of prefixes gains and loses, as vLLM's KV events: for other people's routers."""

from __future__ import annotations

import time
from hashlib import blake2b
from queue import SimpleQueue
from threading import Thread
from typing import Any

import msgspec
import numpy as np

from kvfold.plugins.contract.errors import MissingExtraError, RequestError

MEDIUM = "GPU"  # vLLM's word for the memory that a hit costs nothing in
# Events that wait for their thread are sent together.
MOST_TOGETHER = 256


class Event(msgspec.Struct, array_like=True, tag=True, frozen=True):
    """One event; an array whose first value names it."""


class BlockStored(Event, frozen=True):
    """Whole pages that follow on a known one.

    Attributes:
        block_hashes: names of the pages.
        parent_block_hash: of the page before them; None at the beginning.
        token_ids: of all of them.
        block_size: tokens of a page.
        lora_id: no adapter.
        medium: where they are.
        lora_name: no adapter.
    """

    block_hashes: list[int]
    parent_block_hash: int | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None = None
    medium: str | None = MEDIUM
    lora_name: str | None = None


class BlockRemoved(Event, frozen=True):
    """Pages that are gone."""

    block_hashes: list[int]
    medium: str | None = MEDIUM


class AllBlocksCleared(Event, frozen=True):
    """Nothing is cached: an engine has begun."""


class EventBatch(msgspec.Struct, array_like=True, frozen=True):
    """Events at a time, in seconds since the epoch; `data_parallel_rank` is vLLM's."""

    ts: float
    events: list[Event]
    data_parallel_rank: int = 0


class KvEvents:
    """Publishes what a tree of prefixes tells it; a thread of its own names pages and sends."""

    def __init__(self, endpoint: str, topic: str, page_size: int) -> None:
        """Listen for subscribers.

        Args:
            endpoint: such as `tcp://*:5557`.
            topic: of each message, such as `kv@POD@MODEL`.
            page_size: tokens of a page.

        Raises:
            MissingExtraError: pyzmq is not installed.
            RequestError: the endpoint cannot be listened on.
        """
        try:
            import zmq
        except ModuleNotFoundError:
            raise MissingExtraError("KV events need pyzmq: run `pip install 'kvfold[kv-events]'`") from None
        self._socket: Any = zmq.Context.instance().socket(zmq.PUB)
        self._socket.linger = 0
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            self._socket.close()
            raise RequestError(f"KV events cannot be sent at {endpoint}: {error}; choose another") from error
        self._topic = topic.encode()
        self._page_size = page_size
        self._sent = 0
        self._told: SimpleQueue[tuple[str, bytes, int] | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name="kvfold kv events", daemon=True)
        self._thread.start()

    def stored(self, tenant: str, tokens: bytes, first: int) -> None:
        """A prefix's pages from number `first` on are cached now; never blocks."""
        self._told.put((tenant, tokens, first))

    def removed(self, tenant: str, tokens: bytes, first: int) -> None:
        """A prefix's pages from number `first` on are gone; never blocks."""
        self._told.put((tenant, tokens, -1 - first))

    def close(self) -> None:
        """Send what was told, and end."""
        self._told.put(None)
        self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        self._send([AllBlocksCleared()])
        while (told := self._told.get()) is not None:
            events = [self._event(*told)]
            while len(events) < MOST_TOGETHER and not self._told.empty():
                more = self._told.get()
                if more is None:
                    self._send(events)
                    return
                events.append(self._event(*more))
            self._send(events)

    def _event(self, tenant: str, tokens: bytes, first: int) -> Event:
        names = self._names(tenant, tokens)
        if first < 0:
            return BlockRemoved(names[-1 - first :])
        ids = np.frombuffer(tokens, np.int64)[first * self._page_size :].tolist()
        return BlockStored(names[first:], names[first - 1] if first else None, ids, self._page_size)

    def _names(self, tenant: str, tokens: bytes) -> list[int]:
        """A number for each page, made of all tokens up to its end and of whose they are."""
        size = self._page_size * 8
        parent, names = blake2b(tenant.encode(), digest_size=8).digest(), []
        for at in range(0, len(tokens), size):
            parent = blake2b(parent + tokens[at : at + size], digest_size=8).digest()
            names.append(int.from_bytes(parent, "big"))
        return names

    def _send(self, events: list[Event]) -> None:
        payload = msgspec.msgpack.encode(EventBatch(time.time(), events))
        self._socket.send_multipart((self._topic, self._sent.to_bytes(8, "big"), payload))
        self._sent += 1

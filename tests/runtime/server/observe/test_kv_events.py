"""KV events: a subscriber that follows them knows exactly what the tree holds."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import numpy as np
import pytest

from kvfold.plugins.contract.errors import RequestError
from kvfold.runtime.llm.llm import LLM
from kvfold.runtime.sampling.params import SamplingParams
from kvfold.runtime.server.observe.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, KvEvents
from tests.runtime.harness import PLANS, make_llm

zmq: Any = pytest.importorskip("zmq", reason="pyzmq is not installed: pip install 'kvfold[kv-events]'")
Batch = tuple[float, list[BlockStored | BlockRemoved | AllBlocksCleared], int]
TOPIC = "kv@pod@tiny"


class Subscriber:
    """A router's side: which pages there are, by name, and the prefix that each ends."""

    def __init__(self, endpoint: str) -> None:
        self.socket = zmq.Context.instance().socket(zmq.SUB)
        self.socket.connect(endpoint)
        self.socket.setsockopt_string(zmq.SUBSCRIBE, "kv@")
        self.prefixes: dict[int, tuple[int, ...]] = {}
        self.numbers: list[int] = []
        self.decoder = msgspec.msgpack.Decoder(Batch)

    def read(self) -> None:
        """Everything that came, until it is quiet."""
        while self.socket.poll(300):
            topic, number, payload = self.socket.recv_multipart()
            assert topic.decode() == TOPIC
            self.numbers.append(int.from_bytes(number, "big"))
            for event in self.decoder.decode(payload)[1]:
                self.take(event)

    def take(self, event: BlockStored | BlockRemoved | AllBlocksCleared) -> None:
        match event:
            case BlockStored():
                parent = event.parent_block_hash
                prefix = () if parent is None else self.prefixes[parent]
                for at, name in enumerate(event.block_hashes):
                    prefix += tuple(event.token_ids[at * event.block_size : (at + 1) * event.block_size])
                    self.prefixes[name] = prefix
            case BlockRemoved():
                for name in event.block_hashes:
                    del self.prefixes[name]
            case AllBlocksCleared():
                self.prefixes.clear()


def held(llm: LLM) -> set[tuple[int, ...]]:
    """Every prefix of whole pages in the tree."""
    tree = llm.generator.loop.core.scheduler.memory.tree
    found = set()
    for node in tree.prefixes.nodes():
        tokens = b"".join(each.tokens for each in node.path())
        ids = np.frombuffer(tokens, np.int64).tolist()
        size = len(ids) // node.end
        found |= {tuple(ids[: pages * size]) for pages in range(node.first + 1, node.end + 1)}
    return found


@pytest.mark.parametrize("plan", ["global", "hybrid"])
def test_a_subscriber_knows_what_the_tree_holds_through_growth_and_eviction(plan: str) -> None:
    endpoint = f"inproc://{plan}"
    llm, _ = make_llm(PLANS[plan], pages=24)
    events = KvEvents(endpoint, TOPIC, llm.generator.loop.info.plan.page_size)
    subscriber = Subscriber(endpoint)
    time.sleep(0.2)  # a subscription takes its time
    llm.generator.loop.core.scheduler.memory.tree.prefixes.watcher = events
    rng = np.random.default_rng(1)
    base = rng.integers(0, 256, 60).tolist()
    for turn in range(12):
        prompt = base[: int(rng.integers(0, 60))] + rng.integers(0, 256, 40).tolist()
        llm.generate([prompt], SamplingParams(max_tokens=8))
        if turn % 4 == 3:
            subscriber.read()
            assert set(subscriber.prefixes.values()) == held(llm) != set()
    assert llm.metrics.evicted_pages > 0
    assert subscriber.numbers == list(range(subscriber.numbers[0], subscriber.numbers[-1] + 1))
    events.close()


def test_an_event_is_an_array_as_vllm_sends_it() -> None:
    stored = msgspec.msgpack.decode(msgspec.msgpack.encode(BlockStored([1], None, [5, 6], 2)))
    assert stored == ["BlockStored", [1], None, [5, 6], 2, None, "GPU", None]
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(BlockRemoved([1]))) == ["BlockRemoved", [1], "GPU"]


def test_an_address_that_cannot_be_had_is_named() -> None:
    with pytest.raises(RequestError, match="tcp://nowhere"):
        KvEvents("tcp://nowhere", TOPIC, 16)

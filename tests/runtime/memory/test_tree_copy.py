"""The copy of the tree: whole where it is small, the most used part where it is not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvfold.runtime.memory import tree_copy
from kvfold.runtime.memory.kv_memory import KvMemory, Prefix
from kvfold.runtime.memory.tree_copy import Box, TreeCopy
from tests.runtime.harness import PLANS
from tests.runtime.synthetic_engine import SyntheticEngine

PAGE = 16


def make_memory(plan: str = "global") -> KvMemory:
    engine = SyntheticEngine(PLANS[plan], 4096)
    return KvMemory(engine.info, engine.pages)


def serve(memory: KvMemory, tokens: list[int], tenant: str = "") -> None:
    """A request from admission to its end."""
    ids = np.array(tokens)
    sequence = memory.begin(ids, len(ids), Prefix(len(ids), tenant=tenant))
    memory.count_hit(sequence)
    assert memory.allocate(sequence, len(ids))
    memory.commit(sequence, len(ids))
    memory.release(sequence)


def look(memory: KvMemory, tenant: str | None = None) -> list[Box]:
    return list(TreeCopy(memory.tree, tenant).boxes(PAGE))


prompts = st.lists(
    st.tuples(st.sampled_from(["", "t"]), st.lists(st.sampled_from([1, 2]), min_size=1, max_size=6)),
    min_size=1,
    max_size=12,
)


@given(asked=prompts)
def test_a_small_tree_is_copied_whole(asked: list[tuple[str, list[int]]]) -> None:
    memory = make_memory("hybrid")
    for tenant, pages in asked:
        serve(memory, [token for page in pages for token in [page] * PAGE] + [0], tenant)
    copy = TreeCopy(memory.tree, None)
    boxes = list(copy.boxes(PAGE))
    nodes = memory.tree.prefixes.nodes()
    assert copy.size == copy.copied == sum(node.size for node in nodes)
    assert sum(box.tokens for box in boxes) == copy.size * PAGE
    for group in range(memory.arena.num_groups):
        assert sum(box.pages[group] for box in boxes) == sum((node.pages[group] >= 0).sum() for node in nodes)
    ends = [node for node in nodes if node.checkpoint is not None]
    assert sum(len(box.checkpoints) for box in boxes) == len(ends)
    for place, box in enumerate(boxes):
        assert box.others == 0 and box.parent < place
        if box.parent >= 0:
            above = boxes[box.parent]
            assert above.first + above.tokens == box.first
            assert above.tenant == box.tenant and (not above.tokens or above.hits >= box.hits)


def test_hits_count_requests_that_were_let_in() -> None:
    memory = make_memory()
    for _ in range(3):
        serve(memory, [1] * 64 + [2] * 33)
    serve(memory, [1] * 64 + [3] * 33)
    tokens = np.array([1] * 64 + [2] * 33)
    memory.release(memory.begin(tokens, len(tokens), Prefix(len(tokens))))  # looked up, but not let in
    shared, again, once = (box for box in look(memory) if box.tokens)
    assert (shared.tokens, shared.hits) == (64, 3)
    assert [(again.hits, again.tokens), (once.hits, once.tokens)] == [(2, 32), (0, 32)]


def test_a_tenant_s_copy_has_only_its_own() -> None:
    memory = make_memory()
    serve(memory, [1] * 50, "a")
    serve(memory, [1] * 99, "b")
    assert {box.tenant for box in look(memory, "a")} == {"a"}
    assert sum(box.tokens for box in look(memory, "b")) == 96
    assert look(memory, "c") == []


def test_of_many_the_most_used_are_copied_and_the_rest_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_copy, "MAX_CHAINS", 6)
    memory = make_memory()
    for last in range(40):
        serve(memory, [1] * 32 + [last] * 32 + [0])
    for _ in range(2):
        serve(memory, [1] * 32 + [7] * 32 + [0])
    root, shared, most, *latest = look(memory)
    assert len(latest) == 3 and shared.others == 40 - 4
    assert (root.others, shared.hits, most.hits) == (0, 41, 2)
    assert [box.number for box in latest] == [41, 40, 39], "the nodes of the last prompts"


def test_a_copy_is_bounded_in_pages_and_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_copy, "MAX_PAGES", 10)
    monkeypatch.setattr(tree_copy, "MAX_LOOKS", 5)
    memory = make_memory()
    serve(memory, [1] * 321)
    for first in range(10, 30):
        serve(memory, [first] * 17)
    copy = TreeCopy(memory.tree, None)
    assert copy.copied <= 10 and copy.size == 40
    root, *shown = copy.boxes(PAGE)
    assert root.others == 21 - 5 and len(shown) == 5, "of many the latest are looked at"

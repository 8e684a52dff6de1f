"""The index beside a plain model: what is there, what it weighs, what goes first."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvfold.runtime.memory.tiers.layout import SEGMENT_PAGES, TierGroup, TierLayout
from kvfold.runtime.memory.tiers.object_file import ObjectName
from kvfold.runtime.memory.tiers.object_index import ObjectIndex
from kvfold.runtime.memory.tiers.object_order import LIFETIME, ObjectOrder, priority

LAYOUT = TierLayout(16, (TierGroup("g", 256, False), TierGroup("w", 512, True)))


def key(*said: object) -> bytes:
    return hashlib.sha256(repr(said).encode()).digest()[:16]


def segment(root: str, path: str) -> ObjectName:
    """Segment of a chain: each letter of the path is one."""
    parent = key(root) if len(path) == 1 else key(root, path[:-1])
    return ObjectName(key(root), key(root, path), parent, len(path) * SEGMENT_PAGES, False)


def checkpoint(root: str, path: str, rest: int) -> ObjectName:
    """A checkpoint after the chain that a path names."""
    parent = key(root, path) if path else key(root)
    return ObjectName(key(root), key(root, path, rest), parent, len(path) * SEGMENT_PAGES + rest, True)


NAMES = [
    named
    for root in "rs"
    for path in ("a", "b", "aa", "ab", "aaa")
    for named in (segment(root, path), checkpoint(root, path, 5), checkpoint(root, path, 0))
] + [checkpoint("r", "", 1), checkpoint("r", "", 63)]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "promise", "fail", "forget", "touch", "evict"]), st.sampled_from(NAMES)
        ),
        max_size=60,
    )
)
def test_the_index_says_what_a_plain_model_says(steps: list[tuple[str, ObjectName]]) -> None:
    index, there, promised = ObjectIndex(LAYOUT, by_root=True), dict[ObjectName, int](), set[ObjectName]()
    for now, (step, name) in enumerate(steps):
        if step == "add":
            index.add(name, 100 + now, now)
            there[name] = 100 + now
            promised.discard(name)
        elif step == "promise":
            index.promise([name])
            if name not in there:
                promised.add(name)
        elif step == "fail":
            index.forget(name.key, promised=True)
            promised.discard(name)
        elif step == "forget":
            index.forget(name.key)
            there.pop(name, None)
        elif step == "touch":
            index.touch(name.key, now)
        else:
            gone = index.victim(name.root)
            parents = {each.parent for each in {*there, *promised}}
            leaves = {each for each in there if each.root == name.root and each.key not in parents}
            assert gone in leaves if leaves else gone is None
            if gone is not None:
                index.forget(gone.key)
                del there[gone]
        assert (index.num_objects, index.total_bytes) == (len(there), sum(there.values()))
        for root in "rs":
            mine = sum(size for each, size in there.items() if each.root == key(root))
            assert index.root_bytes(key(root)) == mine
        for each in NAMES:
            assert index.is_there(each.key) == (each in there)
            assert index.holds(each.key) == (each in there or each in promised)
        keys = {key for shard in range(256) for key in index.others(shard, set())}
        assert keys == {each.key for each in there}
        assert not any(index.others(shard, keys) for shard in range(256))
        for each in there:
            if each.is_checkpoint:
                (mask,) = index.reach([each.parent])
                assert mask >> each.pages % SEGMENT_PAGES & 1


def drain(index: ObjectIndex) -> list[ObjectName]:
    order = []
    while name := index.victim():
        index.forget(name.key)
        order.append(name)
    return order


def test_leaves_go_before_roots_and_checkpoints_before_their_chain() -> None:
    index = ObjectIndex(LAYOUT, by_root=True)
    end, inner = checkpoint("r", "aa", 5), checkpoint("r", "a", 9)
    # From newest to oldest: age alone would take the root first.
    for used, name in enumerate([end, segment("r", "aa"), inner, segment("r", "a")]):
        index.add(name, 1000, 100.0 - used)
    order = drain(index)
    assert order.index(end) < order.index(segment("r", "aa")) < order.index(segment("r", "a"))
    assert order.index(inner) < order.index(segment("r", "a"))
    assert index.num_objects == 0 and not any(index._places), "nothing is left"


def test_a_chain_without_checkpoints_is_dead_weight_and_goes_first() -> None:
    index = ObjectIndex(LAYOUT, by_root=True)
    index.add(checkpoint("r", "", 5), 10_000, 0.0)
    index.add(segment("s", "a"), 1000, 1e9)
    assert drain(index)[0] == segment("s", "a")
    without_windows = ObjectIndex(TierLayout(16, LAYOUT.groups[:1]), by_root=False)
    without_windows.add(checkpoint("r", "", 5), 10_000, 0.0)
    without_windows.add(segment("s", "a"), 1000, 1e9)
    assert drain(without_windows)[0] == checkpoint("r", "", 5)


def test_the_order_weighs_tokens_saved_a_byte_against_age() -> None:
    short, long = checkpoint("r", "", 1), checkpoint("r", "aaa", 0)
    for later, first in (0.0, short), (LIFETIME, short), (6 * LIFETIME, long):
        index = ObjectIndex(LAYOUT, by_root=True)
        index.add(short, 1000, later)
        index.add(long, 1000, 0.0)
        assert drain(index)[0] == first
    assert priority(0.0, 1024, 1000) - priority(0.0, 1024, 2718) == pytest.approx(LIFETIME, rel=1e-3)


def test_a_use_puts_an_object_behind_those_that_were_not() -> None:
    index = ObjectIndex(LAYOUT, by_root=True)
    names = [checkpoint("r", "", rest) for rest in (7, 8, 9)]
    for name in names:
        index.add(name, 1000 * name.pages, 1.0)
    index.touch(names[0].key, 2.0)
    assert drain(index) == [names[1], names[2], names[0]] or drain(index)[-1] == names[0]


def test_entries_that_are_out_of_date_do_not_pile_up() -> None:
    values = dict.fromkeys(range(10), 0.0)
    order = ObjectOrder(values.get)
    for turn in range(10_000):
        values[turn % 10] = float(turn)
        order.push(turn % 10)
    assert len(order._entries) <= 100 and order.first() == 0


def test_names_survive_their_text_and_no_other_text_is_one() -> None:
    for name in NAMES:
        assert ObjectName.parse(name.text) == name
        for other in (name.text.upper(), name.text + "x", "../" + name.text, name.text[1:], name.text + "\n"):
            assert ObjectName.parse(other) is None

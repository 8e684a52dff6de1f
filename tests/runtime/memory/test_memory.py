"""The window law of hits, what eviction may take, and what it takes first."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvfold.plugins.contract.errors import CapacityError
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.runtime.memory.budget import kv_cache_bytes, pages_of_sequence
from kvfold.runtime.memory.horizon import Horizon, horizons
from kvfold.runtime.memory.kv_memory import KvMemory, Prefix, round_lengths
from kvfold.runtime.memory.paged_sequence import PagedSequence
from kvfold.runtime.memory.tree_node import Kind, TreeNode
from kvfold.runtime.metrics import PrefixMatch
from kvfold.runtime.runtime_config import RuntimeConfig
from tests.runtime.harness import PLANS
from tests.runtime.synthetic_engine import SyntheticEngine, make_plan, visible_positions

PAGE = 16


def make_memory(plan: FoldPlan, pages: int = 64) -> KvMemory:
    """A memory with a budget of so many pages of each group."""
    engine = SyntheticEngine(plan, pages)
    return KvMemory(engine.info, engine.pages)


def evict_all(memory: KvMemory) -> None:
    memory.tree.evict(lambda: False, 1)


def evict_one(memory: KvMemory) -> None:
    """Give up the checkpoint that is worth least, or a page where every page is one."""
    before = memory.tree.evicted_pages
    memory.tree.evict(lambda: memory.tree.evicted_pages > before, 1)
    assert memory.tree.evicted_pages > before


def compute(
    memory: KvMemory, tokens: np.ndarray, chunk: int = 999, prefix: Prefix | None = None
) -> PagedSequence:
    """Run a whole prompt through the memory, as a scheduler would."""
    sequence = memory.begin(tokens, len(tokens), prefix or Prefix(len(tokens)))
    memory.count_hit(sequence)
    while sequence.num_computed < len(tokens):
        end = min(len(tokens), sequence.num_computed + chunk)
        assert memory.allocate(sequence, end)
        memory.commit(sequence, end)
    return sequence


def prompt(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 99, length)


@given(
    window=st.integers(1, 90), sinks=st.integers(0, 40), length=st.integers(1, 200), chunk=st.integers(1, 70)
)
def test_what_a_sequence_keeps_covers_what_is_visible(
    window: int, sinks: int, length: int, chunk: int
) -> None:
    plan = make_plan((window, sinks))
    group = plan.groups[0]
    memory = make_memory(plan)
    sequence = memory.begin(prompt(length), length, Prefix(length))
    peak = 0
    while sequence.num_computed < length:
        start, end = sequence.num_computed, min(length, sequence.num_computed + chunk)
        assert memory.allocate(sequence, end)
        table = sequence.tables[0]
        peak = max(peak, int((table >= 0).sum()))
        for position in (start, end - 1):
            assert (table[visible_positions(group, position) // PAGE] >= 0).all()
        memory.commit(sequence, end)
        assert (table >= 0).sum() <= group.pages_held(end, PAGE)
    assert peak <= memory.horizons[0].peak_pages(length, min(chunk, length))


@given(window=st.integers(1, 90), sinks=st.integers(0, 40), pages=st.integers(1, 12))
def test_a_hit_needs_exactly_the_visible_pages(window: int, sinks: int, pages: int) -> None:
    plan = make_plan((window, sinks))
    horizon: Horizon = horizons(plan)[0]
    seen = visible_positions(plan.groups[0], pages * PAGE)
    assert set(horizon.needed(pages)) == {p // PAGE for p in seen.tolist() if p < pages * PAGE}


def test_a_hit_leaves_a_token_to_compute() -> None:
    memory = make_memory(PLANS["global"])
    tokens = prompt(64)
    memory.release(compute(memory, tokens))
    assert memory.match_tokens(tokens, 64) == 48
    assert memory.match_tokens(np.append(tokens, 1), 65) == 64


def test_a_hit_is_shortened_to_the_last_length_whose_tail_is_there() -> None:
    memory = make_memory(PLANS["hybrid"])  # window 32: two tail pages, one page of sinks
    tokens = prompt(200)
    memory.release(compute(memory, tokens, chunk=16, prefix=Prefix(200, shared_length=100)))
    # Tails are kept at 12 pages (the end) and 6 (the shared prompt); nothing in between. One page
    # is a hit too: the sinks' page is all that it needs.
    for length, expected in [(200, 192), (180, 96), (97, 96), (96, 16), (40, 16)]:
        assert memory.match_tokens(tokens, length) == expected
    sequence = memory.begin(tokens[:180], 180, Prefix(180))
    assert sequence.match == PrefixMatch(matched_tokens=176, hit_tokens=96, gone=(memory.horizons[1].name,))
    assert sequence.checkpoints == {
        11: Kind.PROMPT
    }  # the branch point and the prompt's end are the same page
    mapped = np.flatnonzero(sequence.tables[1] >= 0).tolist()
    assert mapped == [0, 4, 5]
    memory.release(sequence)
    memory.check_integrity([])


def test_a_branch_point_is_cached_when_it_is_passed() -> None:
    memory = make_memory(PLANS["hybrid"])
    tokens = prompt(200)
    memory.release(compute(memory, tokens, chunk=16))
    other = np.concatenate([tokens[:130], prompt(70, seed=1)])
    memory.release(compute(memory, other, chunk=16))
    assert memory.match_tokens(np.concatenate([tokens[:130], prompt(70, seed=2)]), 200) == 128


def test_prompts_that_part_at_a_border_or_near_a_round_length_find_it() -> None:
    memory = make_memory(PLANS["hybrid"], pages=400)
    tokens = prompt(1700)
    memory.release(compute(memory, tokens, chunk=512, prefix=Prefix(1700, borders=(250, 500))))
    for parts, expected in [(300, 240), (520, 496), (1100, 1024), (1650, 1024)]:
        other = np.concatenate([tokens[:parts], prompt(99, seed=parts)])
        assert memory.match_tokens(other, len(other)) == expected
    assert round_lengths(750) == {704, 640, 512}


def test_a_short_context_may_branch_anywhere() -> None:
    memory = make_memory(make_plan((None, 0), (512, 4)))
    tokens = prompt(200)
    memory.release(compute(memory, tokens))
    for length in (17, 64, 100, 199):
        assert memory.match_tokens(tokens, length) == (length - 1) // PAGE * PAGE


def test_superseded_ends_are_evicted_before_the_others() -> None:
    memory = make_memory(PLANS["hybrid"])
    tokens = prompt(400)
    for end in (120, 240, 360):  # three turns of one conversation
        memory.release(compute(memory, tokens[:end], chunk=16))
    while memory.match_tokens(tokens[:240], 240) > PAGE:
        evict_one(memory)
        memory.check_integrity([])
    assert memory.match_tokens(tokens, 400) == 352, "the newest end outlives the older ones"


def test_a_shared_prompt_outlives_newer_superseded_tails() -> None:
    memory = make_memory(PLANS["hybrid"])
    tokens = prompt(300)
    memory.release(compute(memory, tokens[:160], chunk=16, prefix=Prefix(160, shared_length=80)))
    memory.release(compute(memory, tokens, chunk=16))
    evict_one(memory)
    assert memory.match_tokens(tokens[:90], 90) == 80
    assert memory.match_tokens(tokens, 300) == 288


def test_without_windows_a_prefix_loses_its_last_pages_the_least_recently_used_first() -> None:
    memory = make_memory(PLANS["global"])
    old, new = prompt(80), prompt(80, seed=1)
    memory.release(compute(memory, old))
    memory.release(compute(memory, new))
    memory.release(compute(memory, old))  # used again: now the newer one
    evict_one(memory)
    evict_one(memory)
    assert memory.match_tokens(new, 80) == 48
    assert memory.match_tokens(old, 80) == 64
    memory.check_integrity([])


def test_a_global_page_that_no_hit_can_reach_is_not_kept() -> None:
    memory = make_memory(PLANS["hybrid"])
    memory.release(compute(memory, prompt(200), chunk=16))
    memory.release(compute(memory, np.concatenate([prompt(100), prompt(90, seed=1)]), chunk=16))
    while memory.tree.prefixes.size:
        evict_one(memory)
        ends = [node for node in memory.tree.prefixes.nodes() if not node.children]
        assert all(node.checkpoint is not None for node in ends)
    assert memory.arena.idle == [0, 0] and memory.tree.prefixes.roots() == {}


@pytest.mark.parametrize("name", PLANS)
def test_eviction_never_takes_a_page_in_use(name: str) -> None:
    memory = make_memory(PLANS[name])
    tokens = prompt(150)
    running = compute(memory, tokens)
    memory.release(compute(memory, prompt(150, seed=1)))
    memory.publish(running)
    before = running.tables.copy()
    evict_all(memory)
    assert memory.arena.idle == [0] * len(memory.horizons)
    assert (before == running.tables).all()
    if not memory.horizons[0].is_local:
        assert memory.tree.walk(tokens, 9).length == 9, "a prefix in use stays in the tree"
    memory.check_integrity([running])
    memory.release(running)
    memory.check_integrity([])


def test_equal_prompts_in_flight_end_up_sharing_pages() -> None:
    memory = make_memory(PLANS["global"])
    tokens = prompt(100)
    first = memory.begin(tokens, 100, Prefix(100))
    second = memory.begin(tokens, 100, Prefix(100))
    for sequence in (first, second):
        assert memory.allocate(sequence, 100)
        memory.commit(sequence, 100)
    assert memory.arena.busy == [6 + 2]  # six shared, a partial page each
    memory.release(first)
    memory.release(second)
    memory.check_integrity([])


def test_the_order_of_eviction_does_not_grow_with_what_is_asked_again() -> None:
    memory = make_memory(PLANS["hybrid"])
    for _ in range(400):
        memory.release(compute(memory, prompt(90)))
    assert len(memory.tree._order._heap) <= 128
    memory.check_integrity([])


def test_what_sequences_hold_is_not_looked_at_by_each_eviction(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = make_memory(PLANS["global"], pages=200)
    held = [compute(memory, prompt(32, seed=seed)) for seed in range(60)]
    for sequence in held:
        memory.publish(sequence)
    for seed in range(100, 110):
        memory.release(compute(memory, prompt(96, seed=seed)))
    evict_one(memory)
    popped, pop = [], memory.tree._order.pop

    def count() -> TreeNode | None:
        popped.append(pop())
        return popped[-1]

    monkeypatch.setattr(memory.tree._order, "pop", count)
    evict_one(memory)
    assert len(popped) == 1
    memory.check_integrity(held)


def test_a_request_that_finds_no_room_is_no_hit() -> None:
    memory = make_memory(PLANS["hybrid"], pages=14)
    tokens = prompt(100)
    memory.release(compute(memory, tokens, chunk=16))
    earned = {key: list(value) for key, value in memory.tree._order._earned.items()}
    for _ in range(5):
        memory.abandon(memory.begin(tokens, 100, Prefix(100)))
        memory.check_integrity([])
    assert {key: list(value) for key, value in memory.tree._order._earned.items()} == earned
    assert memory.match_tokens(tokens, 100) == 96


def test_refused_allocation_changes_nothing() -> None:
    memory = make_memory(PLANS["hybrid"], pages=8)
    memory.release(compute(memory, prompt(64)))
    idle = list(memory.arena.idle)
    sequence = memory.begin(prompt(300, seed=1), 300, Prefix(300))
    assert not memory.allocate(sequence, 300)
    assert memory.arena.idle == idle
    assert sequence.num_pages == 0


def test_groups_share_the_budget() -> None:
    """Long global prefixes, then short conversations: each gets bytes that the other had."""
    plan = make_plan((None, 0), (64, 0))
    memory = make_memory(plan, pages=40)
    page = memory.arena.page_bytes[0]
    memory.release(compute(memory, prompt(70 * PAGE), chunk=16))
    assert memory.arena.idle[0] == 70, "more pages than an even split would give"
    for seed in range(1, 9):
        memory.release(compute(memory, prompt(4 * PAGE + 1, seed=seed), chunk=16))
        memory.check_integrity([])
    assert memory.arena.idle == [32, 32]
    assert sum(memory.arena.idle) * page <= memory.arena.budget


def test_whatever_fits_in_bytes_runs() -> None:
    plan = make_plan((None, 0), (1024, 4))
    one = make_memory(plan, pages=200)
    longest = max(length for length in range(16, 8000, 16) if one.can_run(length))
    assert one.bytes_needed(longest) <= one.arena.budget < one.bytes_needed(longest + 16)
    sequence = compute(one, prompt(longest), chunk=16)
    one.check_integrity([sequence])
    assert longest > 5000, "an even split has 200 global pages: 3,200 tokens"


def test_the_budget_is_what_the_sequences_need() -> None:
    plan = make_plan((None, 0), (1024, 4))
    slabs = {"global": 1, "window1024_sink4": 4}
    assert pages_of_sequence(plan, 8192, 512) == {"global": 512, "window1024_sink4": 196}
    page = 2 * 2 * 4 * 16
    assert kv_cache_bytes(plan, slabs, RuntimeConfig(max_num_seqs=3), 8192) == 3 * (512 + 196) * page
    assert kv_cache_bytes(plan, slabs, RuntimeConfig(kv_cache_bytes=9999), 8192) == 9999
    with pytest.raises(CapacityError, match="kv_cache_bytes is 1,000, and 16 tokens already take"):
        kv_cache_bytes(plan, slabs, RuntimeConfig(kv_cache_bytes=1000), 8192)

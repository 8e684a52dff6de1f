"""What a tier costs: `python -m tests.runtime.memory.tiers.measure_tiers [SEGMENTS]`; CPU time, medians."""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from time import process_time

import numpy as np
import psutil

from kvfold.runtime.memory.tiers.chain import Chain
from kvfold.runtime.memory.tiers.layout import SEGMENT_PAGES, TierGroup, TierLayout
from kvfold.runtime.memory.tiers.object_file import ObjectName
from kvfold.runtime.memory.tiers.object_index import ObjectIndex
from kvfold.runtime.memory.tiers.object_tier import DirectoryTier
from kvfold.runtime.memory.tiers.prefix import TierLimits

# Plan `compact`: bytes of a page, and pages that a checkpoint keeps.
KEPT = {"w32": (24, 3), "w64": (54, 5), "w128": (66, 9), "w256": (18, 17), "w512": (6, 33)}
LAYOUT = TierLayout(
    16,
    (
        TierGroup("global", 4096, False),
        *(TierGroup(name, kib << 10, True) for name, (kib, _) in KEPT.items()),
    ),
)
CHAIN = 20
RUNS, REPEATS = 31, 20


def cpu(call: Callable[[], object], runs: int = RUNS) -> float:
    """Median seconds of CPU of the process, all threads."""
    times = []
    for _ in range(runs):
        start = process_time()
        call()
        times.append(process_time() - start)
    return median(times)


def fill(index: ObjectIndex, segments: int) -> None:
    """Conversations of CHAIN segments and one checkpoint."""
    root = os.urandom(16)
    for number in range(segments // CHAIN):
        parent = root
        for depth in range(1, CHAIN + 1):
            key = os.urandom(16)
            index.add(ObjectName(root, key, parent, depth * SEGMENT_PAGES, False), 1 << 18, float(number))
            parent = key
        index.add(
            ObjectName(root, os.urandom(16), parent, CHAIN * SEGMENT_PAGES + 7, True), 1 << 21, float(number)
        )


def measure_index(segments: int) -> None:
    """Memory of an index, and what a question costs in it."""
    gc.collect()
    before = psutil.Process().memory_info().rss
    index = ObjectIndex(LAYOUT, by_root=False)
    start = process_time()
    fill(index, segments)
    took = process_time() - start
    gc.collect()
    used = psutil.Process().memory_info().rss - before
    print(f"index: {index.num_objects} objects, {used / index.num_objects:.0f} bytes each", end=", ")
    print(f"{1e6 * took / index.num_objects:.1f} us to add one")
    victims = 10_000
    start = process_time()
    for _ in range(victims):
        victim = index.victim()
        assert victim is not None
        index.forget(victim.key)
    print(f"index: {1e6 * (process_time() - start) / victims:.1f} us to give one up")


def measure_questions(tier: DirectoryTier) -> None:
    """`find` and `wanted` in the owner's thread."""
    for tokens in (2_000, 8_000, 128_000):
        ids = np.random.default_rng(tokens).integers(0, 50_000, tokens)
        pages = (tokens - 1) // 16
        store(tier, tier.chain(""), ids, pages)
        known = tier.chain("")
        assert tier.find(known, ids, pages) == pages
        asked: dict[str, Callable[[], object]] = {
            "find, keys not yet known": partial(_find_anew, tier, ids, pages),
            "find, keys known": partial(tier.find, known, ids, pages),
            "wanted, keys known": partial(tier.wanted, known, ids, pages),
        }
        for what, call in asked.items():
            print(f"{tokens} tokens: {what}: {1e6 * cpu(partial(_repeat, call)) / REPEATS:.0f} us")


def _find_anew(tier: DirectoryTier, ids: np.ndarray, pages: int) -> None:
    tier.find(tier.chain(""), ids, pages)


def _repeat(call: Callable[[], object]) -> None:
    for _ in range(REPEATS):
        call()


def store(tier: DirectoryTier, chain: Chain, ids: np.ndarray, pages: int) -> None:
    """A prefix of random pages."""
    wanted = tier.wanted(chain, ids, pages)
    assert wanted is not None
    rows = {name: np.zeros((kept, kib << 10), np.uint8) for name, (kib, kept) in KEPT.items()}
    rows["global"] = np.zeros((len(wanted.global_pages), 4096), np.uint8)
    tier.store(chain, ids, wanted, rows)
    assert tier.flush(60)


def measure_bytes(tier: DirectoryTier) -> None:
    """A conversation of 2,000 tokens: one segment and one checkpoint."""
    ids = np.random.default_rng(0).integers(0, 50_000, (2 * RUNS, 2_000))
    todo = iter(ids)
    pages = 124
    before = tier.stats().written_bytes
    took = cpu(lambda: store(tier, tier.chain("t"), next(todo), pages))
    size = (tier.stats().written_bytes - before) / RUNS
    print(f"write of {size / 2**20:.2f} MiB in two files: {1e3 * took:.2f} ms")
    chain = tier.chain("t")
    took = cpu(lambda: tier.load(chain, ids[0], pages).result())
    print(f"read and verify of the same, page cache: {1e3 * took:.2f} ms")


def main() -> None:
    """Print all figures."""
    measure_index(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
    with tempfile.TemporaryDirectory() as folder:
        limits = TierLimits(1 << 33, queue_bytes=1 << 30)
        tier = DirectoryTier(Path(folder) / "t", LAYOUT, LAYOUT.root_key("measured", "none"), limits)
        measure_questions(tier)
        measure_bytes(tier)
        tier.close()


if __name__ == "__main__":
    main()

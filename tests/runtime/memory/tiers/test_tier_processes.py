"""Processes that share a directory, and one that is killed at any moment."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.runtime.memory.tiers.object_file import DIGEST_BYTES, HEADER, ObjectName
from kvfold.runtime.memory.tiers.prefix import TierLimits
from tests.runtime.harness import PLANS
from tests.runtime.memory.tiers.tier_harness import WAIT, find, get, open_tier, put, text

PLAN: FoldPlan = PLANS["hybrid"]
SMALL = TierLimits(200_000, tenant_bytes=150_000)
LENGTHS = (3, 66, 130)
KILLS, WRITES = 60, 100


def start(call: str, place: Path, seed: int) -> subprocess.Popen[bytes]:
    module = "tests.runtime.memory.tiers.test_tier_processes"
    code = f"import sys; from pathlib import Path; import {module} as m; m.{call}(Path(sys.argv[1]), {seed})"
    return subprocess.Popen([sys.executable, "-c", code, str(place)])


def check_files(place: Path) -> int:
    """That every object is whole; how many are not finished."""
    unfinished = 0
    for file in place.glob("*/*"):
        if file.suffix == ".tmp":
            unfinished += 1
            continue
        assert ObjectName.parse(file.name) is not None
        data, head = file.read_bytes(), HEADER.size + 4 * len(PLAN.groups)
        said, body = data[head : head + DIGEST_BYTES], data[head + DIGEST_BYTES :]
        assert hashlib.sha256(data[:head] + body).digest() == said, file
    return unfinished


def store_for_ever(place: Path, seed: int, tell: int) -> None:
    """As slowly as a disk may be: every write is a short one; the pipe `tell` hears of each."""
    write = os.write

    def write_little(descriptor: int, data: Any) -> int:
        write(tell, b"w")
        return write(descriptor, memoryview(data)[:1000])

    os.write = write_little
    tier, rng = open_tier(place), random.Random(seed)
    while True:
        put(tier, PLAN, text(rng.randrange(10_000), 130), rng.choice(LENGTHS))
        tier.flush(WAIT)


def kill_again_and_again(place: Path, seed: int) -> None:
    """Fork a process that stores, kill it near a drawn write, and so on; without threads of our own."""
    rng = random.Random(seed)
    for count in range(KILLS):
        heard, tell = os.pipe()
        child = os.fork()
        if child == 0:
            store_for_ever(place, count, tell)
        os.close(tell)  # the child's alone: where it ends by itself, so does what is heard
        for _ in range(rng.randint(1, WRITES)):
            assert os.read(heard, 1) == b"w"
        time.sleep(rng.uniform(0, 0.002))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(heard)


def test_after_a_kill_at_any_moment_every_file_is_whole_or_ignored(tmp_path: Path) -> None:
    place = tmp_path / "t"
    assert start("kill_again_and_again", place, 0).wait(300) == 0
    unfinished = check_files(place)
    tier = open_tier(place)
    assert tier.stats().ignored == unfinished > 0, "no kill was in the middle of a write"
    assert tier.stats().objects == len(list(place.glob("*/*"))) - unfinished > 0
    loaded = 0
    for count in range(KILLS):
        rng = random.Random(count)
        tokens, pages = text(rng.randrange(10_000), 130), rng.choice(LENGTHS)
        found = find(tier, tokens, pages)
        assert found in (0, *LENGTHS) and get(tier, PLAN, tokens, pages) == (found == pages)
        loaded += found > 0
    assert loaded > 0 == tier.stats().damaged


def store_load_and_evict(place: Path, seed: int) -> None:
    """Work that overlaps with another process's: what is loaded is right, be it evicted or not."""
    tier, rng = open_tier(place, limits=SMALL), random.Random(seed)
    loaded = 0
    for turn in range(1, 401):
        tokens, pages = text(rng.randrange(15), 130), rng.choice(LENGTHS)
        put(tier, PLAN, tokens, pages, rng.choice(["", "t"]))
        if turn % 5 == 0:
            tier.refresh()
        tokens, tenant = text(rng.randrange(15), 130), rng.choice(["", "t"])
        found = find(tier, tokens, 130, tenant)
        loaded += bool(found) and get(tier, PLAN, tokens, found, tenant)
    assert tier.close(WAIT)
    stats = tier.stats()
    assert stats.evicted > 20 and not stats.damaged and not stats.errors, stats
    assert stats.state.reading and stats.state.writing


def test_two_processes_write_and_evict_in_one_directory_at_once(tmp_path: Path) -> None:
    place = tmp_path / "t"
    processes = [start("store_load_and_evict", place, seed) for seed in range(2)]
    assert [process.wait(300) for process in processes] == [0, 0]
    assert check_files(place) == 0
    tier = open_tier(place, limits=SMALL)
    sizes = [file.stat().st_size for file in place.glob("*/*")]
    assert (tier.stats().objects, tier.stats().bytes) == (len(sizes), sum(sizes))
    put(tier, PLAN, text(99, 130), 3)
    tier.flush(WAIT)
    assert sum(file.stat().st_size for file in place.glob("*/*")) <= SMALL.quota_bytes


@pytest.mark.parametrize("seed", range(3))
def test_threads_of_one_tier_do_not_disturb_each_other(tmp_path: Path, seed: int) -> None:
    store_load_and_evict(tmp_path / "t", seed)
    assert check_files(tmp_path / "t") == 0

"""A directory that fails: the tier goes on without it, says so, and comes back with it."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from kvfold.plugins.contract.errors import TierError
from kvfold.runtime.memory.tiers.object_tier import ObjectTier
from kvfold.runtime.memory.tiers.tier_state import TierHealth
from tests.runtime.harness import PLANS
from tests.runtime.memory.tiers.tier_harness import WAIT, find, get, open_tier, put, text

PLAN = PLANS["hybrid"]
TOKENS = text(0, 70)
NOBODY = 65534


def refresh(tier: ObjectTier) -> None:
    tier.refresh()
    assert tier.flush(WAIT)


def end_pause(tier: ObjectTier) -> None:
    """As if the seconds until the next try were over."""
    tier._health._until = 0.0


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("before", [0, 1, 3])
def test_a_full_disk_pauses_writing_and_leaves_no_half_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, before: int
) -> None:
    tier = open_tier(tmp_path / "t")
    put(tier, PLAN, TOKENS, 66)
    tier.flush(WAIT)
    calls = 0

    def write(descriptor: int, data: memoryview) -> int:
        nonlocal calls
        calls += 1
        if calls > before:
            raise OSError(code, os.strerror(code))
        return len(data[:100])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        assert put(tier, PLAN, text(1, 70), 66) and tier.flush(WAIT)
    assert calls == before + 1
    assert not tier.state.writing and tier.state.reading and os.strerror(code) in tier.state.reason
    assert not list((tmp_path / "t").glob("*/*.tmp"))
    assert find(tier, TOKENS, 70) == 66 and get(tier, PLAN, TOKENS, 66), "it still reads"
    assert not put(tier, PLAN, text(2, 70), 66), "nothing is copied during the pause"
    assert (tier.stats().errors, tier.stats().dropped) == (1, 2)
    end_pause(tier)
    assert put(tier, PLAN, text(1, 70), 66) and tier.flush(WAIT) and get(tier, PLAN, text(1, 70), 66)
    assert tier.state.writing and tier.state.reason == ""


def test_a_limit_of_the_system_on_files_is_a_full_disk_too(tmp_path: Path) -> None:
    """In a process of its own: the kernel itself cuts the write in the middle."""
    tier = open_tier(tmp_path / "t")
    put(tier, PLAN, TOKENS, 3)
    tier.close()
    code = (
        "import sys; from pathlib import Path; from tests.runtime.memory.tiers import test_tier_failures;"
        "test_tier_failures.run_out_of_room(Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "t")], check=True, timeout=120)
    assert not list((tmp_path / "t").glob("*/*.tmp"))


def run_out_of_room(place: Path) -> None:
    """Files may be as long as a checkpoint, and not as a segment."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    tier = open_tier(place)
    assert get(tier, PLAN, TOKENS, 3)
    assert put(tier, PLAN, TOKENS, 66) and tier.flush(WAIT)
    assert not tier.state.writing and os.strerror(errno.EFBIG) in tier.state.reason
    assert find(tier, TOKENS, 70) == 3 and get(tier, PLAN, TOKENS, 3)
    end_pause(tier)
    assert put(tier, PLAN, text(1, 70), 3) and tier.flush(WAIT) and tier.state.writing


@pytest.fixture
def guarded() -> Iterator[Path]:
    """A directory that this process, be it root's, cannot write to: it acts as somebody else meanwhile."""
    top = Path(tempfile.mkdtemp())
    place = top / "t"
    tier = open_tier(place)
    put(tier, PLAN, TOKENS, 66)
    tier.close()
    root = os.geteuid() == 0
    folders = [place, *place.iterdir()]
    if root:
        for path in top, *folders, *place.glob("*/*"):
            os.chown(path, NOBODY, NOBODY)
    for folder in folders:
        folder.chmod(0o500)
    if root:
        os.seteuid(NOBODY)
    try:
        yield place
    finally:
        if root:
            os.seteuid(0)
        for folder in folders:
            folder.chmod(0o700)
        shutil.rmtree(top)


def test_a_read_only_directory_is_read(guarded: Path) -> None:
    with pytest.raises(PermissionError):
        (guarded / "probe").touch()
    tier = open_tier(guarded)
    assert find(tier, TOKENS, 70) == 66 and get(tier, PLAN, TOKENS, 66)
    put(tier, PLAN, text(1, 70), 66)
    tier.flush(WAIT)
    assert tier.state.reading and not tier.state.writing and "Permission denied" in tier.state.reason
    assert get(tier, PLAN, TOKENS, 66)
    for file in guarded.glob("*/*.segment"):
        file.write_bytes(bytes(99))
    assert not get(tier, PLAN, TOKENS, 66), "damaged, and cannot be removed"
    assert tier.stats().damaged == 1 and find(tier, TOKENS, 70) == 0


@pytest.mark.parametrize("how", ["removed", "moved away", "replaced by a file"])
def test_a_directory_that_vanishes_is_done_without_until_it_is_back(tmp_path: Path, how: str) -> None:
    place = tmp_path / "t"
    tier = open_tier(place)
    put(tier, PLAN, TOKENS, 66)
    tier.flush(WAIT)
    if how == "removed":
        shutil.rmtree(place)
    else:
        place.rename(tmp_path / "away")
    if how == "replaced by a file":
        place.write_text("mine")
    assert not get(tier, PLAN, TOKENS, 66)
    assert put(tier, PLAN, text(1, 70), 66) and tier.flush(WAIT)
    assert not tier.state.writing and tier.state.reason
    refresh(tier)
    assert not tier.state.reading and find(tier, TOKENS, 70) == 0
    if how == "replaced by a file":
        assert place.read_text() == "mine"
        place.unlink()
    else:
        assert not place.exists(), "what was unmounted is not made anew below the mount"
    if how == "removed":
        place.mkdir(0o700)
    else:
        (tmp_path / "away").rename(place)
    refresh(tier)
    end_pause(tier)
    assert find(tier, TOKENS, 70) == (0 if how == "removed" else 66)
    assert put(tier, PLAN, text(1, 70), 66) and tier.flush(WAIT) and get(tier, PLAN, text(1, 70), 66)
    assert tier.state.reading and tier.state.writing and tier.state.reason == ""


def test_what_was_removed_under_the_tier_is_a_miss_and_can_be_written_again(tmp_path: Path) -> None:
    tier = open_tier(tmp_path / "t")
    put(tier, PLAN, TOKENS, 66)
    tier.flush(WAIT)
    for folder in (tmp_path / "t").iterdir():
        shutil.rmtree(folder)
    assert find(tier, TOKENS, 70) == 66 and not get(tier, PLAN, TOKENS, 66)
    assert find(tier, TOKENS, 70) == 0 and tier.stats().missing == 1
    refresh(tier)
    assert tier.stats().objects == 0
    assert put(tier, PLAN, TOKENS, 66) and tier.flush(WAIT) and get(tier, PLAN, TOKENS, 66)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    place, outside = tmp_path / "t", tmp_path / "outside"
    tier = open_tier(place)
    put(tier, PLAN, TOKENS, 3)
    tier.flush(WAIT)
    (file,) = place.glob("*/*")
    folder = file.parent
    file.rename(outside)
    file.symlink_to(outside)
    assert not get(tier, PLAN, TOKENS, 3), "not even to a whole object"
    refresh(tier)
    assert (tier.stats().objects, tier.stats().ignored) == (0, 1)
    whole = outside.read_bytes()
    outside.write_bytes(b"mine")
    assert put(tier, PLAN, TOKENS, 3) and tier.flush(WAIT) and get(tier, PLAN, TOKENS, 3)
    assert not file.is_symlink() and file.read_bytes() == whole and outside.read_bytes() == b"mine"

    folder.rename(tmp_path / "folder")
    folder.symlink_to(tmp_path / "folder")
    assert not get(tier, PLAN, TOKENS, 3)
    refresh(tier)
    assert (tier.stats().objects, tier.stats().ignored) == (0, 1)
    (tmp_path / "folder" / file.name).unlink()
    put(tier, PLAN, TOKENS, 3)
    tier.flush(WAIT)
    assert not list((tmp_path / "folder").iterdir()), "nothing is written through it"
    assert tier.stats().dropped == 1 and tier.state.writing, "one folder of 256: no reason to pause"


def test_a_pipe_in_an_object_s_place_holds_nobody_up(tmp_path: Path) -> None:
    tier = open_tier(tmp_path / "t")
    put(tier, PLAN, TOKENS, 3)
    tier.flush(WAIT)
    (file,) = (tmp_path / "t").glob("*/*")
    file.unlink()
    os.mkfifo(file)
    assert not get(tier, PLAN, TOKENS, 3)


def test_everything_is_this_user_s_alone(tmp_path: Path) -> None:
    tier = open_tier(tmp_path / "t")
    put(tier, PLAN, TOKENS, 66)
    tier.flush(WAIT)
    paths = [tmp_path / "t", *(tmp_path / "t").rglob("*")]
    assert {path.stat().st_mode & 0o777 for path in paths} == {0o700, 0o600}


def test_a_directory_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_tier(tmp_path / "t").close()
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(TierError, match=r"belongs to user .* runs as 12345; give each user a directory"):
        open_tier(tmp_path / "t")


def test_a_file_of_another_user_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tier = open_tier(tmp_path / "t")
    put(tier, PLAN, TOKENS, 3)
    tier.flush(WAIT)
    (file,) = (tmp_path / "t").glob("*/*")
    try:
        os.chown(file, NOBODY, -1)
    except PermissionError:
        pytest.skip("only root can give a file away; it would have shown that such a file is not read")
    assert not get(tier, PLAN, TOKENS, 3)
    refresh(tier)
    assert (tier.stats().objects, tier.stats().ignored) == (0, 1)


@pytest.mark.parametrize("mode", [0o702, 0o777, 0o2772])
def test_a_directory_that_others_may_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t").chmod(mode)
    with pytest.raises(TierError, match=rf"mode {mode:o}: others may write to it; chmod 700 it"):
        open_tier(tmp_path / "t")


def test_a_volume_that_kubernetes_opened_to_the_pod_s_group_is_used(tmp_path: Path) -> None:
    """With fsGroup all of a volume is given to a group and made writable for it, at each mount."""
    place, group = tmp_path / "t", os.getgid()
    tier = open_tier(place)
    put(tier, PLAN, TOKENS, 3)
    tier.close()
    for path in (place, *place.rglob("*")):
        os.chown(path, -1, group)
        path.chmod(0o2770 if path.is_dir() else 0o660)
    again = open_tier(place)
    assert get(again, PLAN, TOKENS, 3) and put(again, PLAN, TOKENS, 5)
    assert again.flush(WAIT) and get(again, PLAN, TOKENS, 5)
    again.close()


def test_a_directory_that_a_foreign_group_may_write_to_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t").chmod(0o770)
    monkeypatch.setattr(os, "getgroups", list)
    monkeypatch.setattr(os, "getegid", lambda: 12345)
    with pytest.raises(TierError, match=r"mode 770: others may write to it"):
        open_tier(tmp_path / "t")


def test_a_place_that_is_no_directory_or_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(TierError, match=r"Not a directory|File exists"):
        open_tier(tmp_path / "file")
    with pytest.raises(TierError, match=r"No such file or directory; give a directory"):
        open_tier(tmp_path / "none" / "t")
    with suppress(FileNotFoundError):
        assert not list((tmp_path / "none").iterdir())


def test_pauses_grow_and_end_with_the_first_success() -> None:
    now = 0.0
    health = TierHealth(lambda: now)
    waits = []
    for _ in range(9):
        health.write_failed(OSError(errno.ENOSPC, "full"))
        start = now
        while not health.may_write:
            now += 0.5
        waits.append(now - start)
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert health.state.reason == "cannot write: full"
    health.wrote()
    health.write_failed(OSError(errno.ENOSPC, "full"))
    now += 1
    assert health.may_write and not health.state.writing, "not until it has written"

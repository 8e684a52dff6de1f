"""No byte that was not written comes out of a tier: flipped, cut, swapped, half-written."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from kvfold.runtime.memory.tiers import object_file
from kvfold.runtime.memory.tiers.object_index import ObjectIndex
from kvfold.runtime.memory.tiers.object_tier import ObjectTier
from tests.runtime.harness import PLANS
from tests.runtime.memory.tiers.tier_harness import WAIT, find, get, open_tier, put, text

PLAN = PLANS["many"]
TOKENS = text(0, 66)


def stored(place: Path, pages: int) -> tuple[ObjectTier, list[Path]]:
    """A tier that holds one prefix, and its files."""
    tier = open_tier(place, "many")
    put(tier, PLAN, TOKENS, pages)
    assert tier.flush(WAIT) and get(tier, PLAN, TOKENS, pages)
    return tier, sorted(place.glob("*/*"))


def test_each_of_ten_thousand_flipped_bits_is_found(tmp_path: Path) -> None:
    tier, files = stored(tmp_path / "t", 65)
    assert len(files) == 2
    whole = {file: file.read_bytes() for file in files}
    head = object_file.HEADER.size + 4 * len(PLAN.groups) + object_file.DIGEST_BYTES
    rng = random.Random(0)
    for count in range(1, 10_001):
        file = rng.choice(files)
        data = whole[file]
        bit = rng.randrange(8 * (head if count % 4 == 0 else len(data)))
        with file.open("r+b") as damaged:
            damaged.seek(bit // 8)
            damaged.write(bytes([data[bit // 8] ^ 1 << bit % 8]))
        assert not get(tier, PLAN, TOKENS, 65), f"bit {bit} of {file.name}"
        assert tier.stats().damaged == count and not file.exists()
        file.write_bytes(data)
    assert get(tier, PLAN, TOKENS, 65)


def test_a_file_cut_at_any_byte_or_grown_is_found(tmp_path: Path) -> None:
    tier, (file,) = stored(tmp_path / "t", 2)
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        assert not get(tier, PLAN, TOKENS, 2) and not file.exists()
    for more in b"\0", whole, bytes(1 << 20):
        file.write_bytes(whole + more)
        assert not get(tier, PLAN, TOKENS, 2) and not file.exists()
    assert tier.stats().damaged == len(whole) + 3


def test_a_whole_file_under_another_s_name_is_found(tmp_path: Path) -> None:
    tier, (file,) = stored(tmp_path / "t", 2)
    mine = file.read_bytes()
    for tokens, tenant in (text(1, 2), ""), (TOKENS, "other"):
        put(tier, PLAN, tokens, 2, tenant)
        tier.flush(WAIT)
        (other,) = set((tmp_path / "t").glob("*/*")) - {file}
        other.write_bytes(mine)
        assert not get(tier, PLAN, tokens, 2, tenant) and not other.exists()
    assert get(tier, PLAN, TOKENS, 2)


def test_a_file_that_was_cut_to_nothing_stops_nobody_who_lists_it(tmp_path: Path) -> None:
    tier, (file,) = stored(tmp_path / "t", 2)
    assert tier.close()
    file.write_bytes(b"")
    again = open_tier(tmp_path / "t", "many")
    assert not get(again, PLAN, TOKENS, 2) and not file.exists() and again.stats().damaged == 1
    assert put(again, PLAN, TOKENS, 2) and again.flush(WAIT) and get(again, PLAN, TOKENS, 2)


def test_a_length_that_no_sequence_has_is_in_no_name_of_ours(tmp_path: Path) -> None:
    tier, (file,) = stored(tmp_path / "t", 2)
    assert tier.close()
    other = file.with_name(file.name.replace("-00000002.", "-80000000."))
    other.write_bytes(file.read_bytes())
    again = open_tier(tmp_path / "t", "many")
    assert other.exists() and again.stats().ignored == 1 and get(again, PLAN, TOKENS, 2)


def test_whatever_goes_wrong_while_looking_around_is_told_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier, _ = stored(tmp_path / "t", 2)

    def others(*_: object) -> list[bytes]:
        raise RuntimeError("odd")

    with monkeypatch.context() as patch:
        patch.setattr(ObjectIndex, "others", others)
        tier.refresh()
        assert tier.flush(WAIT) and tier.state.reason == "cannot read: odd"
    tier.refresh()
    assert tier.flush(WAIT) and tier.state.reading and get(tier, PLAN, TOKENS, 2)


def test_a_damaged_prefix_is_not_found_again_until_it_is_written_again(tmp_path: Path) -> None:
    tier, files = stored(tmp_path / "t", 65)
    segment = next(file for file in files if file.suffix == ".segment")
    segment.write_bytes(bytes(len(segment.read_bytes())))
    assert find(tier, TOKENS, 66) == 65 and not get(tier, PLAN, TOKENS, 65)
    assert find(tier, TOKENS, 66) == 0
    assert put(tier, PLAN, TOKENS, 65) and tier.flush(WAIT) and get(tier, PLAN, TOKENS, 65)


def test_of_an_object_whose_header_says_another_version_nothing_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier, (file,) = stored(tmp_path / "t", 2)
    with monkeypatch.context() as patch:
        patch.setattr(object_file, "FORMAT_VERSION", 2)
        file.unlink()
        tier.refresh()
        tier.flush(WAIT)
        assert put(tier, PLAN, TOKENS, 2) and tier.flush(WAIT) and get(tier, PLAN, TOKENS, 2)
    assert not get(tier, PLAN, TOKENS, 2) and tier.stats().damaged == 1


def test_folders_of_another_version_are_left_alone_and_counted(tmp_path: Path) -> None:
    _, (file,) = stored(tmp_path / "t", 2)
    newer = file.parent.with_name(file.parent.name.replace("v1", "v2"))
    file.parent.rename(newer)
    tier = open_tier(tmp_path / "t", "many")
    assert find(tier, TOKENS, 2) == 0 and not get(tier, PLAN, TOKENS, 2)
    assert (tier.stats().ignored, tier.stats().objects) == (1, 0)
    assert (newer / file.name).exists()


def test_what_a_killed_process_left_half_written_is_ignored_and_removed_when_old(tmp_path: Path) -> None:
    _, (file,) = stored(tmp_path / "t", 2)
    young, old = file.with_name(f"{1:032x}.tmp"), file.with_name(f"{2:032x}.tmp")
    for half in young, old:
        half.write_bytes(file.read_bytes()[:100])
    os.utime(old, times=(time.time() - 3600,) * 2)
    tier = open_tier(tmp_path / "t", "many")
    assert young.exists() and not old.exists() and get(tier, PLAN, TOKENS, 2)
    assert (tier.stats().ignored, tier.stats().objects) == (1, 1)


def test_files_that_are_none_of_ours_are_left_alone(tmp_path: Path) -> None:
    tier, (file,) = stored(tmp_path / "t", 2)
    tier.close()
    name = file.name
    strangers = [
        tmp_path / "t" / "notes.txt",
        file.with_name("notes.txt"),
        file.with_name(name.replace(".checkpoint", ".tmp")),
        file.with_name("F" + name[1:]),
        file.with_name(name.replace(name[33:65], f"{(file.name[33] == '0'):x}" * 32)),
    ]
    for stranger in strangers:
        stranger.write_text("mine")
        os.utime(stranger, times=(0, 0))
    again = open_tier(tmp_path / "t", "many")
    assert (again.stats().ignored, again.stats().objects) == (len(strangers), 1)
    assert all(stranger.read_text() == "mine" for stranger in strangers)

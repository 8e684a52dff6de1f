"""Opening bundles: every damage is named, with what to run next."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kvfold.pipeline.workspace.run_stages import run_stages
from kvfold.pipeline.workspace.write_bundle import open_writer
from kvfold.plugins.contract.errors import BundleError
from kvfold.plugins.contract.version import VERSION
from kvfold.runtime.bundle import open_bundle
from tests.pipeline.fake_stages import QuietDisplay, fake_recipe, fake_stages


@pytest.fixture
def root(tmp_path: Path) -> Path:
    run_stages(fake_recipe(), tmp_path, fake_stages([]), QuietDisplay())
    return tmp_path


def test_files_and_directories_are_handed_out(root: Path) -> None:
    bundle = open_bundle(root)
    assert bundle.file("first/a.txt").read_text().startswith("first")
    assert bundle.directory("third") == root / "third"


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"is no bundle.*kvfold build"):
        open_bundle(tmp_path / "absent")


def test_another_version(root: Path) -> None:
    manifest = root / "manifest.json"
    manifest.write_text(manifest.read_text().replace(f'"{VERSION}"', '"9.9.9"'))
    with pytest.raises(BundleError, match=rf"written by kvfold 9\.9\.9, this is {VERSION}"):
        open_bundle(root)


@pytest.mark.parametrize(
    "name", ["../outside.txt", "/etc/passwd", "first/../../outside.txt", "a\\u0000b", ""]
)
def test_a_manifest_that_leads_out_of_the_folder(root: Path, name: str) -> None:
    """Not even where its files would be removed, as those of another version are."""
    outside = root.parent / "outside.txt"
    outside.write_text("mine")
    manifest = root / "manifest.json"
    forged = manifest.read_text().replace('"first/a.txt"', f'"{name}"').replace(f'"{VERSION}"', '"9.9.9"')
    manifest.write_text(forged)
    with pytest.raises(BundleError, match=r"manifest\.json is not valid(?s:.*)is no path inside the bundle"):
        open_bundle(root)
    with pytest.raises(BundleError, match=r"is no path inside the bundle"), open_writer(root):
        pass
    assert outside.read_text() == "mine"


def test_a_name_that_no_file_can_have(root: Path) -> None:
    manifest = root / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"first/a.txt"', f'"{"x" * 5000}"'))
    with pytest.raises(BundleError, match="cannot be read"):
        open_bundle(root)


def test_an_unreadable_manifest(root: Path) -> None:
    (root / "manifest.json").write_text("{")
    with pytest.raises(BundleError, match=r"manifest\.json"):
        open_bundle(root)


def test_missing_and_truncated_files(root: Path) -> None:
    path = root / "second" / "b.txt"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(BundleError, match=r"second/b\.txt is truncated: 5995 bytes, recorded 6000"):
        open_bundle(root)
    path.unlink()
    with pytest.raises(BundleError, match=r"second/b\.txt is missing"):
        open_bundle(root)


def corrupt(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])


def test_a_changed_file_is_refused_when_it_is_asked_for(root: Path) -> None:
    corrupt(root / "second" / "b.txt")
    bundle = open_bundle(root)
    with pytest.raises(BundleError, match=r"second/b\.txt is corrupted"):
        bundle.file("second/b.txt")
    with pytest.raises(BundleError, match="corrupted"):
        bundle.directory("second")
    bundle.file("first/a.txt")


def test_full_verification_sees_a_change_that_keeps_size_and_time(root: Path) -> None:
    path = root / "second" / "b.txt"
    status = path.stat()
    corrupt(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    open_bundle(root).file("second/b.txt")
    with pytest.raises(BundleError, match=r"second/b\.txt is corrupted"):
        open_bundle(root, verify="full")


def test_a_copied_bundle_is_as_good(root: Path) -> None:
    os.utime(root / "first" / "a.txt")
    open_bundle(root).file("first/a.txt")


def test_what_was_never_written_is_named(root: Path) -> None:
    bundle = open_bundle(root)
    with pytest.raises(BundleError, match=r"holds no model\.onnx"):
        bundle.file("model.onnx")
    with pytest.raises(BundleError, match=r"holds no engine/cpu \(engines built: none\)"):
        bundle.directory("engine/cpu")

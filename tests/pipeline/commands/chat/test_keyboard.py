"""Where a chat's history is kept, and that it may be nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvfold.pipeline.chat.keyboard import ChatHistory, history_path


def test_the_history_is_in_the_user_s_folder_for_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert history_path() == Path("/home/ada/.local/state/kvfold/chat_history")
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert history_path() == Path("/state/kvfold/chat_history")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert history_path() == Path("/home/ada/.local/state/kvfold/chat_history"), "XDG has such a path ignored"


def test_a_user_without_a_home_has_no_history(monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", home)
    assert history_path() is None


def test_messages_of_several_lines_come_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "chat_history"
    history = ChatHistory(path)
    for message in ("one", "two\nlines"):
        history.store_string(message)
    assert list(ChatHistory(path).load_history_strings()) == ["two\nlines", "one"]
    assert path.stat().st_mode & 0o077 == 0


def test_a_file_that_cannot_be_used_is_no_history(tmp_path: Path) -> None:
    history = ChatHistory(tmp_path)  # a folder
    history.store_string("one")
    assert list(history.load_history_strings()) == []

"""One session's file: who may hold it, what a failing disk leaves, what is refused."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kvfold.plugins.contract.errors import SessionBusyError, SessionError
from kvfold.plugins.contract.template_text import TemplateText, by_template, written_by_template
from kvfold.runtime.sessions import session_file
from kvfold.runtime.sessions.saved_session import SavedSession, SavedTurn, apply_change, change_between
from kvfold.runtime.sessions.session_store import SessionStore
from kvfold.runtime.text.chat import EncodedChat
from tests.root import ROOT


def said(*texts: str, **facts: Any) -> SavedSession:
    """A session of so many turns; each goes on from the one before."""
    turns: list[SavedTurn] = []
    text, ids = TemplateText(), list[int]()
    for one in texts:
        text = text + by_template("<|user|>") + one
        ids = [*ids, 7, *one.encode()]
        turns.append(SavedTurn([one], EncodedChat(text, ids)))
    return SavedSession(facts, tuple(turns))


def store(folder: Path, model: str = "model") -> SessionStore:
    return SessionStore(folder, model)


def saved(folder: Path, session: SavedSession, name: str = "ada") -> Path:
    """A file that holds a session, and nobody holds it."""
    file = store(folder).open(name)
    assert file.save(session)
    file.close()
    return file.path


def exactly(session: SavedSession) -> Any:
    """A value that two sessions share only where all is the same, marks too."""
    turns = [
        (t.said, t.known.text, written_by_template(t.known.text), t.known.token_ids) for t in session.turns
    ]
    return dict(session.facts), turns


def test_changes_say_what_was_taken_back_given_up_and_said() -> None:
    long = said("one", "two", "three", system="s")
    for after in (
        SavedSession(long.facts, long.turns[:2]),
        SavedSession(long.facts, long.turns[1:]),
        SavedSession({"system": None}, long.turns),
        SavedSession(long.facts, (*long.turns[1:], said("one", "two", "three", "four").turns[3])),
        SavedSession(long.facts, ()),
        said("another", "two"),
        said(),
    ):
        change = change_between(long, after)
        found = apply_change(long, change)
        assert exactly(found)[1] == exactly(after)[1]
        assert {**long.facts, **after.facts} == found.facts
    change = change_between(long, SavedSession(long.facts, long.turns[1:]))
    assert (change["drop"], change["keep"], change["turns"]) == (1, 2, [])


def test_a_turn_costs_what_it_adds(tmp_path: Path) -> None:
    texts = ["x" * 1000] * 30
    file = store(tmp_path).open("ada")
    sizes = []
    session = said()
    for count in range(1, 31):
        longer = said(*texts[:count])
        session = SavedSession({}, (*session.turns, longer.turns[-1]))
        file.save(session)
        sizes.append(file.path.stat().st_size)
    file.close()
    assert sizes[-1] - sizes[-2] < 1.2 * (sizes[1] - sizes[0])
    assert exactly(store(tmp_path).open("ada").session) == exactly(said(*texts))


def test_one_holder_at_a_time_and_who_forgets_to_close_holds_no_longer(tmp_path: Path) -> None:
    path = saved(tmp_path, said("one"))
    held = store(tmp_path).open("ada")
    with pytest.raises(SessionBusyError, match="in use elsewhere"):
        store(tmp_path).open("ada")
    with pytest.raises(SessionBusyError):
        store(tmp_path).delete("ada")
    assert exactly(store(tmp_path).read("ada").session) == exactly(said("one")), "anyone may read it"
    del held
    gc.collect()
    again = store(tmp_path).open("ada")
    again.close()
    again.close()
    store(tmp_path).delete("ada")
    store(tmp_path).delete("ada")
    assert not path.exists()


def test_a_session_that_never_said_anything_leaves_no_file(tmp_path: Path) -> None:
    file = store(tmp_path).open("ada")
    file.close()
    assert not file.path.exists()
    assert not file.save(said("one")) and "cannot be written" in str(file.failure)


def test_what_was_cleared_is_not_on_the_disk_any_more(tmp_path: Path) -> None:
    file = store(tmp_path).open("ada")
    file.save(said("a secret", "more"))
    file.save(said())
    assert b"secret" not in file.path.read_bytes()
    with pytest.raises(SessionBusyError):
        store(tmp_path).open("ada")
    file.save(said("new"))
    file.close()
    assert exactly(store(tmp_path).open("ada").session) == exactly(said("new"))


def test_a_file_that_outgrows_what_it_holds_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_file, "REWRITE_BYTES", 2000)
    file = store(tmp_path).open("ada")
    for count in range(200):
        assert file.save(said(f"{count} " * 20, "kept"))
        assert file.path.stat().st_size < 5000
        assert not file.path.with_suffix(".aside").exists()
        with pytest.raises(SessionBusyError):
            store(tmp_path).open("ada")
    file.close()
    assert exactly(store(tmp_path).open("ada").session) == exactly(said("199 " * 20, "kept"))


def test_a_torn_end_is_told_and_written_over(tmp_path: Path) -> None:
    path = saved(tmp_path, said("one"))
    whole = path.read_bytes()
    path.write_bytes(whole + b"torn" * 500)
    file = store(tmp_path).open("ada")
    assert (file.lost, exactly(file.session)) == (2000, exactly(said("one")))
    longer = SavedSession({}, (*file.session.turns, said("one", "two").turns[1]))
    assert file.save(longer)
    file.close()
    again = store(tmp_path).open("ada")
    assert (again.lost, exactly(again.session)) == (0, exactly(said("one", "two")))


# A file of this user may have so many bytes: a write that goes on fails in the middle, as on a full disk.
FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from tests.runtime.sessions.test_session_file import exactly, said, store
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = Path(sys.argv[1])
file = store(folder).open("ada")
one = said("one" * 50)
assert file.save(one)
size = file.path.stat().st_size
for limit in range(size, size + 400, 7):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    assert not file.save(said("one" * 50, "two" * 200)), limit
    assert "cannot be written" in file.failure
    assert file.path.stat().st_size == size, "what was half written is gone"
assert exactly(store(folder).read("ada").session) == exactly(one)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert file.save(said("one" * 50, "two" * 200, "three"))
assert file.failure is None
file.close()
assert exactly(store(folder).open("ada").session) == exactly(said("one" * 50, "two" * 200, "three"))
"""


def test_a_full_disk_leaves_the_last_state_and_the_next_save_makes_up_for_it(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def test_a_sync_that_fails_counts_as_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = store(tmp_path).open("ada")
    assert file.save(said("one"))
    before = file.path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", lambda _: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        assert not file.save(said("one", "two"))
    assert file.path.read_bytes() == before and "Input/output error" in str(file.failure)
    assert file.save(said("one", "two"))


def test_a_file_that_was_removed_meanwhile_is_not_made_again(tmp_path: Path) -> None:
    file = store(tmp_path).open("ada")
    file.save(said("one"))
    file.path.unlink()
    assert not file.save(said("one", "two")) and "it was removed" in str(file.failure)
    other = store(tmp_path).open("ada")
    other.save(said("other"))
    file.delete()
    file.close()
    assert other.path.exists(), "the file of another holder stays"


def test_files_are_this_user_s_alone_and_plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.umask(0)
    try:
        path = saved(tmp_path / "deep" / "sessions", said("one"))
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    assert (
        path.parent.stat().st_mode & 0o777 == (tmp_path / "deep" / "sessions").stat().st_mode & 0o777 == 0o700
    )
    opened = store(tmp_path / "deep" / "sessions")
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(SessionError, match="of this user"):
        opened.open("ada")
    with pytest.raises(SessionError, match="no plain file of this user"):
        opened.read("ada")


@pytest.mark.parametrize("kind", ["link", "dangling", "pipe", "folder"])
def test_what_is_no_plain_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = saved(tmp_path, said("one"))
    target = path.rename(tmp_path / "target") if kind == "link" else tmp_path / "nothing"
    if kind in ("link", "dangling"):
        path.unlink(missing_ok=True)
        path.symlink_to(target)
    else:
        path.unlink()
        os.mkfifo(path) if kind == "pipe" else path.mkdir()
    for use in (store(tmp_path).open, store(tmp_path).read, store(tmp_path).delete):
        with pytest.raises((SessionError, IsADirectoryError)):
            use("ada")
    assert not (tmp_path / "nothing").exists()
    assert store(tmp_path).entries() == [] and store(tmp_path).forget(-10) == 0

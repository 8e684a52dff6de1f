"""A folder of sessions: no name leads out of it, each owner has its own, models and kinds are kept apart."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvfold.plugins.contract.errors import SessionError
from kvfold.runtime.sessions.session_store import SessionStore
from tests.root import ROOT
from tests.runtime.sessions.test_session_file import exactly, said, store

NAMES = [
    "ada",
    "Ada",
    ".",
    "..",
    "../../etc/passwd",
    "/",
    "a/b",
    "nul\0",
    "x" * 512,
    "\udcff",
    "名前",
    "=2e",
    "a b",
]


def test_no_name_leads_anywhere_and_none_meets_another(tmp_path: Path) -> None:
    folder = tmp_path / "sessions"
    for owner in ("", "..", "other"):
        for at, name in enumerate(NAMES):
            file = store(folder).open(name, owner)
            assert file.session.turns == ()
            file.save(said(f"{owner} {at}"))
            file.close()
    for owner in ("", "..", "other"):
        for at, name in enumerate(NAMES):
            assert exactly(store(folder).read(name, owner).session) == exactly(said(f"{owner} {at}"))
        assert sorted(entry.name for entry in store(folder).entries(owner)) == sorted(NAMES)
    assert len(store(folder).entries()) == 3 * len(NAMES)
    assert [path.name for path in tmp_path.iterdir()] == ["sessions"]
    for path in folder.rglob("*.session"):
        assert path.relative_to(folder).match("*/*.session") and path.resolve() == path


@pytest.mark.parametrize("name", ["", "x" * 513])
def test_a_name_has_a_length(tmp_path: Path, name: str) -> None:
    with pytest.raises(SessionError, match="1 to 512 characters"):
        store(tmp_path).open(name)
    with pytest.raises(SessionError, match="1 to 512 characters"):
        store(tmp_path).open("ada", "x" * 513)


def test_a_session_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(SessionError, match="there is no session 'ada'"):
        store(tmp_path).open("ada", create=False)
    assert list(tmp_path.iterdir()) == []


def test_another_model_s_tokens_and_another_kind_are_refused(tmp_path: Path) -> None:
    file = store(tmp_path).open("ada")
    file.save(said("one"))
    file.close()
    with pytest.raises(SessionError, match="another model's tokens; use the bundle"):
        store(tmp_path, "another").open("ada")
    heading = store(tmp_path, "another").read("ada").heading
    assert heading is not None and heading.model == "model"
    other = SessionStore(tmp_path, "model", "response")
    with pytest.raises(SessionError, match="another session, or another kind"):
        other.open("ada")
    assert other.entries() == []


def test_entries_come_by_use_and_old_or_many_ones_go_unless_they_are_held(tmp_path: Path) -> None:
    held = None
    for age, name in enumerate("abcdef"):
        file = store(tmp_path).open(name)
        file.save(said("one"))
        os.utime(file.path, (time.time() - 100 * age,) * 2)
        if name == "f":
            held = file
        else:
            file.close()
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "left.aside").touch()
    (tmp_path / "x" / "odd.aside").mkdir()  # it cannot be removed, as on a disk that may only be read
    for name in ("left.aside", "odd.aside"):
        os.utime(tmp_path / "x" / name, (1, 1))
    found = store(tmp_path)
    assert [entry.name for entry in found.entries()] == list("abcdef")
    assert found.forget(350) == 1  # e; f is held
    assert [entry.name for entry in found.entries()] == list("abcdf")
    assert not (tmp_path / "x" / "left.aside").exists()
    found.touch("d")
    assert found.forget(10000, at_most=2) == 2
    assert sorted(entry.name for entry in found.entries()) == ["a", "d", "f"]
    assert held is not None
    held.close()


# Opens a session, says so, and waits to be killed.
HOLDER = """
import sys, time
from pathlib import Path
from tests.runtime.sessions.test_session_file import store
file = store(Path(sys.argv[1])).open("ada")
print("held", flush=True)
time.sleep(600)
"""


def test_a_dead_process_holds_nothing(tmp_path: Path) -> None:
    file = store(tmp_path).open("ada")
    file.save(said("one"))
    file.close()
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(SessionError, match="in use elsewhere"):
            store(tmp_path).open("ada")
        process.kill()
    assert exactly(store(tmp_path).open("ada").session) == exactly(said("one"))


def test_a_folder_that_is_none_or_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SessionError, match="no folder of this user"):
        store(tmp_path / "file").open("ada")
    with pytest.raises(OSError):
        store(tmp_path / "file" / "below").open("ada")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SessionError, match="no folder of this user"):
        store(tmp_path / "link").open("ada")
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert store(tmp_path / "file").entries() == [] and store(tmp_path / "file").forget(0) == 0


# As nobody, since root may write anywhere; modules are read before, as a checkout may be root's alone.
READ_ONLY = """
import os, tempfile
from pathlib import Path
from tests.runtime.sessions.test_session_file import said, store
with tempfile.TemporaryDirectory() as folder:
    os.chmod(folder, 0o755)
    kept = Path(folder, "kept")
    kept.mkdir()
    if os.geteuid() == 0:
        os.chown(kept, 65534, 65534)
        os.seteuid(65534)
    file = store(kept).open("ada")
    assert file.save(said("one"))
    file.close()
    file.path.parent.chmod(0o500)
    file = store(kept).open("ada")
    assert file.save(said("one", "two")), "a file that is there can still be written"
    assert not file.save(said()), "and none be put in its place"
    assert "Permission denied" in file.failure
    file.close()
    for use, name in ((store(kept).open, "new"), (store(kept).delete, "ada")):
        try:
            use(name)
        except PermissionError:
            continue
        raise AssertionError(use)
    file.path.parent.chmod(0o700)
    os.seteuid(os.getuid())
"""


def test_a_folder_that_may_only_be_read_is_an_error() -> None:
    result = subprocess.run(
        [sys.executable, "-c", READ_ONLY], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr

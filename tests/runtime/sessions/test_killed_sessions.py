"""A process that talks is killed again and again: what it had said the end of is there, and nothing else is.

`python -m tests.runtime.sessions.test_killed_sessions 100 1000` parks 1,000 sessions and kills it 100 times.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

from kvfold import LLM, Session
from tests.runtime.sessions.resumed import make_small, operate, standing

KILLS, SESSIONS = 20, 5


def open_one(llm: LLM, folder: Path, name: str) -> Session:
    """One of the sessions, as it was left."""
    return llm.session(on_overflow="drop_oldest", file=llm.store(folder).open(name))


def place(number: int, sessions: int) -> tuple[str, int]:
    """Which session an operation is of, and which one of its own it is."""
    return f"s{number % sessions}", number // sessions


def talk(folder: Path, sessions: int, first: int, told: Connection) -> None:
    """Operate on one session after another, for ever; each operation is told of when it has returned."""
    llm = make_small()
    told.send_bytes(b"r")
    for number in range(first, 10**9):
        name, own = place(number, sessions)
        with open_one(llm, folder, name) as session:
            operate(session, own)
        told.send_bytes(b"o")


class Unkilled:
    """The same sessions in memory, which live on."""

    def __init__(self, sessions: int) -> None:
        self._llm = make_small()
        self._sessions = sessions
        self._open: dict[str, Session] = {}
        self.done = 0

    def go_on(self) -> None:
        """The next operation."""
        name, own = place(self.done, self._sessions)
        operate(self.session(name), own)
        self.done += 1

    def session(self, name: str) -> Session:
        if name not in self._open:
            self._open[name] = self._llm.session(on_overflow="drop_oldest")
        return self._open[name]

    def check(self, folder: Path) -> None:
        """Every session on disk stands as its twin does."""
        for at in range(min(self.done, self._sessions)):
            with open_one(make_small() if at == 0 else self._llm, folder, f"s{at}") as session:
                assert standing(session) == standing(self.session(f"s{at}"))


def kill_once(folder: Path, sessions: int, first: int, seconds: float) -> int:
    """Let a process operate for a while, and kill it; how many operations it told of."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    listen, told = context.Pipe(duplex=False)
    process = context.Process(target=talk, args=(folder, sessions, first, told))
    process.start()
    told.close()
    assert listen.recv_bytes() == b"r"
    time.sleep(seconds)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    acknowledged = 0
    while listen.poll():
        try:
            listen.recv_bytes()
        except EOFError:
            break
        acknowledged += 1
    return acknowledged


def kill_again_and_again(folder: Path, kills: int, sessions: int, seconds: float) -> tuple[int, int]:
    """How many operations were done, and how many of them were not told of before the kill."""
    draw, unkilled, untold = random.Random(kills), Unkilled(sessions), 0
    for _ in range(kills):
        for _ in range(kill_once(folder, sessions, unkilled.done, draw.uniform(0, seconds))):
            unkilled.go_on()
        name, _ = place(unkilled.done, sessions)
        with open_one(make_small(), folder, name) as session:
            found = standing(session)
        if found != standing(
            unkilled.session(name)
        ):  # what ran had reached the disk, but not who asked for it
            unkilled.go_on()
            untold += 1
            assert found == standing(unkilled.session(name))
    unkilled.check(folder)
    return unkilled.done, untold


def test_a_killed_session_is_whole_or_shorter_by_the_turn_that_ran(tmp_path: Path) -> None:
    done, _ = kill_again_and_again(tmp_path, KILLS, SESSIONS, 0.04)
    assert done > KILLS / 2, "it talked between the kills"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        kills, sessions = int(sys.argv[1]), int(sys.argv[2])
        done, untold = kill_again_and_again(Path(folder), kills, sessions, 0.5)
        print(f"{kills} kills, {sessions} sessions, {done} operations, all as unkilled;")
        print(f"{untold} of them had reached the disk, and the kill came before whoever asked heard of it")

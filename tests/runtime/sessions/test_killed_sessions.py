"""A process that talks is killed again and again: what it had said the end of is there, and nothing else is.

Its pages lie in a tier beside its sessions: those that a kill left there are reused, and none is wrong.
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
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from kvfold import LLM, Session
from kvfold.runtime.memory.tiers.prefix import TierLimits
from tests.runtime.harness import PLANS, check
from tests.runtime.scheduler.test_below_the_pools import open_directory
from tests.runtime.sessions.resumed import PLAN, make_small, operate, standing, tokens

KILLS, SESSIONS = 20, 5


def open_one(llm: LLM, folder: Path, name: str) -> Session:
    """One of the sessions, as it was left."""
    return llm.session(on_overflow="drop_oldest", file=llm.store(folder).open(name))


def place(number: int, sessions: int) -> tuple[str, int]:
    """Which session an operation is of, and which one of its own it is."""
    return f"s{number % sessions}", number // sessions


def talk(folder: Path, sessions: int, first: int, told: Connection) -> None:
    """Operate on one session after another, for ever; each operation is told of when it has returned.

    With it goes how many tokens came from the tier so far.
    """
    llm = make_tiered(folder)
    told.send_bytes(b"r")
    for number in range(first, 10**9):
        name, own = place(number, sessions)
        with open_one(llm, folder, name) as session:
            operate(session, own, name)
        told.send_bytes(str(llm.metrics.cache.loaded_tokens).encode())


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
        operate(self.session(name), own, name)
        self.done += 1

    def session(self, name: str) -> Session:
        if name not in self._open:
            self._open[name] = self._llm.session(on_overflow="drop_oldest")
        return self._open[name]

    def check(self, folder: Path) -> int:
        """Every session on disk stands as its twin does, and goes on as it does; tokens from the tier."""
        llm = make_tiered(folder)
        for at in range(min(self.done, self._sessions)):
            twin = self.session(f"s{at}")
            with open_one(llm, folder, f"s{at}") as session:
                assert standing(session) == standing(twin)
                for each in (session, twin):
                    each.send("And now? ", tokens(3))
                assert standing(session) == standing(twin)
        check(llm)
        return llm.metrics.cache.loaded_tokens


def make_tiered(folder: Path) -> LLM:
    """An LLM whose pages lie in a tier beside the sessions."""
    return make_small(tier=open_directory(PLANS[PLAN], folder / "kv", TierLimits(1 << 30)))


@dataclass
class Killed:
    """What killed processes told of.

    Attributes:
        operations: that had returned.
        loaded: tokens that came from the tier.
    """

    operations: int = 0
    loaded: int = 0


def kill_once(folder: Path, sessions: int, first: int, seconds: float) -> Killed:
    """Let a process operate for a while, and kill it."""
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
    killed = Killed()
    while listen.poll():
        try:
            killed.loaded = int(listen.recv_bytes())
        except EOFError:
            break
        killed.operations += 1
    return killed


def kill_again_and_again(folder: Path, kills: int, sessions: int, seconds: float) -> tuple[Killed, int, int]:
    """What was done, how many operations were not told of before the kill, and tokens reused at the end."""
    draw, unkilled, untold, total = random.Random(kills), Unkilled(sessions), 0, Killed()
    for _ in range(kills):
        killed = kill_once(folder, sessions, unkilled.done, draw.uniform(0, seconds))
        total.loaded += killed.loaded
        for _ in range(killed.operations):
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
    total.operations = unkilled.done
    return total, untold, unkilled.check(folder)


def test_a_killed_session_is_whole_or_shorter_by_the_turn_that_ran(tmp_path: Path) -> None:
    total, _, reused = kill_again_and_again(tmp_path, KILLS, SESSIONS, 0.04)
    assert total.operations > KILLS / 2, "it talked between the kills"
    assert total.loaded + reused > 0, "pages of before a kill were reused"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        kills, sessions = int(sys.argv[1]), int(sys.argv[2])
        total, untold, reused = kill_again_and_again(Path(folder), kills, sessions, 0.5)
        print(f"{kills} kills, {sessions} sessions, {total.operations} operations, all as unkilled;")
        print(f"{untold} of them had reached the disk, and the kill came before whoever asked heard of it")
        print(
            f"{total.loaded:,} tokens came from the tier meanwhile, {reused:,} in a last turn of each session"
        )

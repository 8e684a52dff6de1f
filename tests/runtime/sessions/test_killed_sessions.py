"""A process that talks is killed again and again: what it had said the end of is there, and nothing else is.

`python -m tests.runtime.sessions.test_killed_sessions 100` kills it a hundred times.
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

from tests.runtime.sessions.resumed import make_small, open_session, operate, standing

KILLS = 20


def talk(folder: Path, first: int, told: Connection) -> None:
    """Operate on the session for ever; each operation is told of when it has returned."""
    session = open_session(make_small(), folder)
    told.send_bytes(b"r")
    for number in range(first, 10**6):
        operate(session, number)
        told.send_bytes(b"o")


def kill_again_and_again(folder: Path, kills: int, seed: int = 0) -> tuple[int, int]:
    """How many operations were done, and how many of them were not told of before the kill."""
    draw = random.Random(seed)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    unkilled = make_small().session(on_overflow="drop_oldest")
    done = untold = 0
    for _ in range(kills):
        listen, told = context.Pipe(duplex=False)
        process = context.Process(target=talk, args=(folder, done, told))
        process.start()
        told.close()
        assert listen.recv_bytes() == b"r"
        time.sleep(draw.uniform(0, 0.04))
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
        for number in range(done, done + acknowledged):
            operate(unkilled, number)
        done += acknowledged
        with open_session(make_small(), folder) as session:
            found = standing(session)
        if found != standing(unkilled):  # the operation that ran had reached the disk, but not its caller
            operate(unkilled, done)
            done, untold = done + 1, untold + 1
        assert found == standing(unkilled)
    return done, untold


def test_a_killed_session_is_whole_or_shorter_by_the_turn_that_ran(tmp_path: Path) -> None:
    done, _ = kill_again_and_again(tmp_path, KILLS)
    assert done > KILLS / 2, "it talked between the kills"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        count = int(sys.argv[1])
        done, untold = kill_again_and_again(Path(folder), count, seed=count)
        print(f"{count} kills, {done} operations, {untold} of them on disk but not told of: all as unkilled")

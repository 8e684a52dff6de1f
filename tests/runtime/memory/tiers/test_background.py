"""A thread of a tier does its work in order, and gives way to the engine's where nobody waits for it."""

from __future__ import annotations

import os
import sys
from functools import partial
from threading import get_native_id

import pytest

from kvfold.runtime.memory.tiers.background import NICE, Background

WAIT = 10.0


@pytest.mark.skipif(sys.platform != "linux", reason="threads have a niceness of their own on Linux only")
@pytest.mark.parametrize("gives_way", [True, False])
def test_a_thread_gives_way_where_nobody_waits_for_its_work(gives_way: bool) -> None:
    mine, found = os.getpriority(os.PRIO_PROCESS, 0), list[int]()
    thread = Background("a thread", gives_way=gives_way)
    thread.do(lambda: found.append(os.getpriority(os.PRIO_PROCESS, get_native_id())))
    assert thread.wait(WAIT)
    assert found == [min(mine + NICE, 19) if gives_way else mine]
    assert os.getpriority(os.PRIO_PROCESS, 0) == mine, "only that thread"
    thread.close()


def test_what_was_asked_for_is_done_in_order_and_nothing_after_the_end() -> None:
    done = list[int]()
    thread = Background("a thread")
    for number in range(100):
        thread.do(partial(done.append, number))
    assert thread.wait(WAIT) and done == list(range(100))
    thread.close()
    assert not thread.wait(WAIT), "it is closed"

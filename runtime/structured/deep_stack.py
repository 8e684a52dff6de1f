"""A call on a thread with a stack of its own size, for code that recurses on what a stranger wrote."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")
_STARTING = threading.Lock()


def call_on_stack(stack_bytes: int, function: Callable[[], T]) -> T:
    """What a function gives, or raises, on a fresh thread whose stack has room for so many bytes."""
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(function())
        except BaseException as error:
            done.set_exception(error)

    thread = threading.Thread(target=run, name="deep-stack", daemon=True)
    with _STARTING:  # the size is the process's; another thread that starts meanwhile gets a larger stack
        before = threading.stack_size(stack_bytes)
        try:
            thread.start()
        finally:
            threading.stack_size(before)
    thread.join()
    return done.result()

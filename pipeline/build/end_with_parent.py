"""A child process that ends with its parent, also where the parent is killed and cannot say so."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from multiprocessing import parent_process

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent() -> None:
    """Have Linux kill this process when the thread that started it ends, however that comes about.

    Elsewhere the process ends with its next message to the parent.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def begin_quietly() -> None:
    """For a child whose parent shows something: Ctrl-C is the parent's, and its end is this one's too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    parent = parent_process()
    if parent is not None and not parent.is_alive():  # it ended while this one started
        os._exit(1)

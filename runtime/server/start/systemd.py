"""What systemd is told of a service of Type=notify, over the socket that NOTIFY_SOCKET names."""

from __future__ import annotations

import os
import socket


def notify(message: str) -> None:
    """Tell systemd, such as `READY=1`; nothing where it did not ask."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(message.encode(), address.replace("@", "\0", 1))


def watchdog_seconds() -> float | None:
    """How often systemd wants to hear `WATCHDOG=1`, halved; None where it does not."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    return int(microseconds) / 2e6 if microseconds.isdecimal() else None

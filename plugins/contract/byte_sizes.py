"""Amounts of bytes: as they are shown, and as they are typed."""

from __future__ import annotations

import re

from kvfold.plugins.contract.errors import RequestError

BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def format_bytes(count: float) -> str:
    """`320 B`, `22.5 KiB`, `180 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.3g} {unit}" if count < 1000 else f"{count:.0f} {unit}"


def parse_bytes(text: str) -> int:
    """`64MiB`, `1.5 GiB`, or a number of bytes.

    Raises:
        RequestError: it is none, its unit is unknown, or it is less than a byte.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text, re.ASCII)
    unit = found[2] or BYTE_UNITS[0] if found else ""
    if found is None or unit not in BYTE_UNITS:
        raise RequestError(
            f"{text!r} is no amount of bytes; write a number and one of {', '.join(BYTE_UNITS)}: e.g. 64MiB"
        )
    count = int(float(found[1]) * 1024 ** BYTE_UNITS.index(unit))
    if not count:
        raise RequestError(f"{text!r} is less than a byte; write e.g. 64MiB")
    return count

"""Requests of a trace in Mooncake's form: JSON lines with their time, lengths and blocks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from kvfold.plugins.contract.errors import RequestError

BLOCK_TOKENS = 512  # of a hash id
FIELDS = ("timestamp", "input_length", "output_length", "hash_ids")


@dataclass(frozen=True)
class TraceRequest:
    """One line of a trace.

    Attributes:
        timestamp: milliseconds from the trace's start.
        input_length: tokens of the prompt, at least one.
        output_length: tokens of the reply.
        hash_ids: name of each block of the prompt, the last one partial or not; equal names stand for equal
            prefixes.
    """

    timestamp: float
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...]


def read_trace_file(path: Path, most: int | None = None) -> Iterator[TraceRequest]:
    """The first `most` requests; by default all.

    Raises:
        RequestError: the file cannot be read, has no request, or a line is not one of such a trace.
    """
    try:
        with path.open(encoding="utf-8") as lines:
            number = 0
            for number, line in enumerate(islice(lines, most), 1):
                try:
                    yield _read(line)
                except ValueError as error:
                    raise RequestError(
                        f"{path}, line {number}: {error}: {line.rstrip()[:80]!r}; give a trace in Mooncake's "
                        f"form, a JSON object a line with {', '.join(FIELDS)}"
                    ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} cannot be read ({error}); give a trace in Mooncake's form") from error
    if not number:
        raise RequestError(f"{path} has no request; give a trace in Mooncake's form")


def _read(line: str) -> TraceRequest:
    """Raises ValueError, which says what is wrong."""
    if not line.endswith("\n"):
        try:
            row = json.loads(line)
        except ValueError:
            raise ValueError("the file ends in the middle of a line; copy it again") from None
    else:
        row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError("no object")
    missing = [name for name in FIELDS if name not in row]
    if missing:
        raise ValueError(f"no {', '.join(missing)}")
    time, read, written, names = (row[name] for name in FIELDS)
    if not isinstance(time, (int, float)) or isinstance(time, bool) or time < 0:
        raise ValueError(f"timestamp is {time!r}, not milliseconds")
    for name, value, least in (("input_length", read, 1), ("output_length", written, 0)):
        if type(value) is not int or value < least:
            raise ValueError(f"{name} is {value!r}, not a number of tokens")
    if not isinstance(names, list) or any(type(name) is not int for name in names):
        raise ValueError("hash_ids is no list of numbers")
    blocks = -(-read // BLOCK_TOKENS)
    if len(names) != blocks:
        raise ValueError(f"{len(names)} hash_ids, {read} tokens have {blocks} blocks of {BLOCK_TOKENS}")
    return TraceRequest(time, read, written, tuple(names))

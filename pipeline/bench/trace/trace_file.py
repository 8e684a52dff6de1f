"""Requests of a trace in Mooncake's form: JSON lines with their time, lengths and blocks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from kvfold.plugins.contract.errors import RequestError

BLOCK_TOKENS = 512  # of a hash id
FIELDS = ("timestamp", "input_length", "output_length", "hash_ids")
FORM = f"give a trace in Mooncake's form: a JSON object a line, with {', '.join(FIELDS)}"
SHOWN = 80  # characters of a line that is wrong


@dataclass(frozen=True)
class TraceRequest:
    """One line of a trace.

    Attributes:
        timestamp: milliseconds since the trace began.
        input_length: tokens of the prompt, at least one.
        output_length: tokens of the reply.
        hash_ids: a name for each block of the prompt, the last one partial; equal names are equal prefixes.
    """

    timestamp: float
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...]


def read_trace_file(path: Path, most: int | None = None) -> Iterator[TraceRequest]:
    """The first `most` requests of a trace; all by default.

    Raises:
        RequestError: the file cannot be read or has no request, or a line is not one of a trace, or is cut.
    """
    number = 0
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(islice(lines, most), 1):
                yield _read(line, f"{path}, line {number}")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path}, line {number + 1} cannot be read ({error}); {FORM}") from error
    if not number:
        raise RequestError(f"{path} has no request; {FORM}")


def _read(line: str, place: str) -> TraceRequest:
    try:
        row = json.loads(line)
    except ValueError as error:
        if not line.endswith("\n"):
            raise RequestError(f"{place}: the file ends within it; fetch the trace again") from error
        raise _wrong(line, place, f"no JSON ({error})") from error
    found = _find_fault(row)
    if found is not None:
        raise _wrong(line, place, found)
    time, prompt, reply, names = (row[name] for name in FIELDS)
    return TraceRequest(time, prompt, reply, tuple(names))


def _wrong(line: str, place: str, fault: str) -> RequestError:
    return RequestError(f"{place}: {fault}: {line.rstrip()[:SHOWN]!r}; {FORM}")


def _find_fault(row: Any) -> str | None:
    """What is wrong with a line's value; None where nothing is."""
    if not isinstance(row, dict):
        return "no object"
    missing = [name for name in FIELDS if name not in row]
    if missing:
        return f"no {', '.join(missing)}"
    time, prompt, reply, names = (row[name] for name in FIELDS)
    if type(time) not in (int, float) or not time >= 0:
        return f"timestamp is {time!r}, not milliseconds since the trace began"
    if type(prompt) is not int or prompt < 1:
        return f"input_length is {prompt!r}, not a number of tokens"
    if type(reply) is not int or reply < 0:
        return f"output_length is {reply!r}, not a number of tokens"
    if not isinstance(names, list) or any(type(name) is not int for name in names):
        return "hash_ids is no list of numbers"
    blocks = -(-prompt // BLOCK_TOKENS)
    if len(names) < blocks:
        return f"{len(names)} hash_ids, and {prompt} tokens are {blocks} blocks of {BLOCK_TOKENS}"
    return None

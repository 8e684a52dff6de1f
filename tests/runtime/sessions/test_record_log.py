"""A log that is cut, changed, mixed up or another's has the whole records in front of that place."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvfold.plugins.contract.errors import SessionError
from kvfold.runtime.sessions.record_log import MAGIC, START, add_records, read_log

PAYLOADS = [b"heading", b"", b"x" * 300, b'{"a": 1}']


def write(payloads: list[bytes]) -> tuple[bytes, list[int]]:
    """A file, and where each of its records ends."""
    data, end, ends = b"", START, []
    for payload in payloads:
        more, end = add_records(end, [payload])
        data += more
        ends.append(len(data))
        assert end.at == len(data)
    return data, ends


@given(st.lists(st.binary(max_size=50), max_size=5))
def test_what_is_written_is_read(payloads: list[bytes]) -> None:
    data, _ = write(payloads)
    assert add_records(START, payloads)[0] == data or not payloads
    found, end = read_log(data)
    assert (found, end.at) == (payloads, len(data))
    more, _ = add_records(end, [b"next"])
    assert read_log(data + more)[0] == [*payloads, b"next"]


def test_a_file_cut_at_any_byte_has_its_whole_records() -> None:
    data, ends = write(PAYLOADS)
    for cut in range(len(data)):
        found, end = read_log(data[:cut])
        whole = sum(border <= cut for border in ends)
        assert found == PAYLOADS[:whole]
        assert end.at == (ends[whole - 1] if whole else 0)


def test_any_flipped_bit_ends_the_file_before_its_record() -> None:
    data, ends = write(PAYLOADS)
    for at in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[at] ^= 1 << bit
            if at == len(MAGIC) - 1:
                with pytest.raises(SessionError, match="version"):
                    read_log(bytes(changed))
                continue
            found, _ = read_log(bytes(changed))
            assert found == PAYLOADS[: sum(border <= at for border in ends)]


def test_records_that_are_lost_doubled_swapped_or_another_file_s_do_not_count() -> None:
    data, ends = write(PAYLOADS)
    start, *parts = (data[a:b] for a, b in zip([0, *ends], ends, strict=False))
    other, other_ends = write([b"another", *PAYLOADS[1:]])
    assert read_log(start + parts[1])[0] == PAYLOADS[:1]
    assert read_log(start + parts[0] + parts[0])[0] == PAYLOADS[:2]
    assert read_log(start + parts[1] + parts[0])[0] == PAYLOADS[:1]
    assert read_log(start + other[other_ends[0] :])[0] == PAYLOADS[:1], (
        "the chain begins with the first record"
    )


def test_a_file_of_another_version_or_kind_is_told_apart() -> None:
    data, _ = write(PAYLOADS)
    with pytest.raises(SessionError, match="has version 9 of the format, and this kvfold reads 1"):
        read_log(MAGIC[:-1] + b"\x09" + data[len(MAGIC) :])
    for strange in (b"", b"kv", MAGIC[:-1], MAGIC, b"\0" * 200, b"PK\3\4" + data):
        assert read_log(strange) == ([], START)

"""Amounts of bytes: as they are shown, and as they are typed."""

from __future__ import annotations

import pytest

from kvfold.plugins.contract.byte_sizes import format_bytes, parse_bytes
from kvfold.plugins.contract.errors import RequestError


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("4096", 4096),
        ("1B", 1),
        ("64MiB", 64 << 20),
        (" 1.5 GiB ", 3 << 29),
        ("0.5KiB", 512),
        ("2TiB", 2 << 40),
    ],
)
def test_an_amount_is_read(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("count", [1, 320, 23040, 180 << 20, 1 << 30])
def test_what_is_shown_can_be_typed(count: int) -> None:
    assert parse_bytes(format_bytes(count)) == count


@pytest.mark.parametrize("text", ["", "MiB", "64MB", "64mib", "1e6", "-1", "1GiB2", "64 Mi B", "١٢"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="is no amount of bytes; write a number and one of B, KiB"):
        parse_bytes(text)


@pytest.mark.parametrize("text", ["0", "0GiB", "0.4B"])
def test_less_than_a_byte_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="is less than a byte"):
        parse_bytes(text)

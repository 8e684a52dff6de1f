"""Fixtures of the kernel tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kvfold.plugins.cpu import cpu_library as library

ISAS = ("portable", "avx2", "avx512vnni")


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """One instruction set, active during the test; skips where this machine or build lacks it."""
    name: str = request.param
    if name not in library.supported_isas():
        pytest.skip(f"this machine or build has no {name}")
    before = library.active_isa()
    library.select_isa(name)
    yield name
    library.select_isa(before)

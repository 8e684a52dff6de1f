"""Every op that has a contract has a parity test against its reference."""

from __future__ import annotations

from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PLUGINS = TESTS.parents[1] / "plugins"
OPS = sorted(path.parent.name for path in PLUGINS.glob("*/schema.py"))
PARTS = ("inputs.py", "reference.py", "schema.py", "tolerances.py")


def test_ops_are_found() -> None:
    assert {"paged_attention", "int8_linear"} <= set(OPS)


@pytest.mark.parametrize("op", OPS)
def test_op_is_complete(op: str) -> None:
    assert [part for part in PARTS if not (PLUGINS / op / part).is_file()] == []


@pytest.mark.parametrize("op", OPS)
def test_op_has_a_parity_test(op: str) -> None:
    """The CPU kernel's test is named after the op and reads its reference's tolerance table."""
    source = (TESTS / "cpu" / f"test_{op}_kernel.py").read_text()
    assert f"plugins.{op}.inputs" in source
    assert "tolerances.OUTPUT" in source

"""What a plan holds of a node, and which plans are refused."""

from __future__ import annotations

from typing import Any

import pytest

from kvfold.plugins.contract.errors import KernelError
from kvfold.plugins.tensorrt.saved_node import KERNELS_FIELD, read_saved_node, saved_values
from tests.plugins.tensorrt.attention_models import CONSUMER, DONOR, PRODUCER

OWN, OTHER = "0123456789abcdef" * 4, "0123456789ab" + "f" * 52


@pytest.mark.parametrize("node", [PRODUCER, DONOR, CONSUMER])
def test_nodes_come_back_as_they_were_saved(node: Any) -> None:
    assert read_saved_node(node.name, saved_values(node, OWN), OWN) == node


@pytest.mark.parametrize(
    ("built", "named"),
    [("f" * 64, "ffffffffffff"), (OTHER, "0123456789ab"), ("", ""), (5, "5"), (None, "unknown")],
)
def test_a_plan_of_other_kernels_is_refused(built: Any, named: str) -> None:
    values = PRODUCER.values() | ({} if built is None else {KERNELS_FIELD: built})
    with pytest.raises(KernelError) as caught:
        read_saved_node("layers.3", values, OWN)
    assert str(caught.value) == (
        f"attention node layers.3: the plan was built with kernels {named}, and these are 0123456789ab; "
        "build the engine again, or the plugin library with the kernels of the plan's engine"
    )


def test_attributes_of_a_plan_are_checked_too() -> None:
    with pytest.raises(KernelError, match="attention node a: attribute heads is unknown"):
        read_saved_node("a", saved_values(PRODUCER, OWN) | {"heads": 3}, OWN)

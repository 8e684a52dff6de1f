"""A node in a plan: its attributes, and which kernels the plan was built with.

A plan fixes the size of the scratch memory for the kernels that it was built with (`split_keys`). Others may
want more and would write past its end, so a plan runs with its own kernels only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvfold.plugins.contract.errors import KernelError
from kvfold.plugins.tensorrt.attributes import Node, Value, read_node

KERNELS_FIELD = "kernels_sha256"
_DIGITS = 12  # enough to tell kernels apart


def saved_values(node: Node, kernels_sha256: str) -> dict[str, Value]:
    """What a plan holds of a node; `read_saved_node` takes it back."""
    return {**node.values(), KERNELS_FIELD: kernels_sha256}


def read_saved_node(name: str, values: Mapping[str, Any], kernels_sha256: str) -> Node:
    """The node that a plan holds.

    Args:
        name: of the node.
        values: that the plan holds of it, by name.
        kernels_sha256: of the kernels that are to run it.

    Raises:
        KernelError: the plan was built with other kernels, or `read_node` refuses the attributes.
    """
    built = str(values.get(KERNELS_FIELD, "unknown"))
    if built != kernels_sha256:
        raise KernelError(
            f"attention node {name}: the plan was built with kernels {built[:_DIGITS]}, and these are "
            f"{kernels_sha256[:_DIGITS]}; build the engine again, or the plugin library with the kernels of "
            "the plan's engine"
        )
    return read_node(name, {key: value for key, value in values.items() if key != KERNELS_FIELD})

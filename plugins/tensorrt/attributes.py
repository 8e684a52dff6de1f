"""A node in the form of `node_form`: its attributes in, `Node` out; `cuda/cpp/node` is the same in C++."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from kvfold.plugins.contract.errors import KernelError
from kvfold.plugins.paged_attention.schema import INPUTS, OPTIONAL_INPUTS, OUTPUTS, Attributes
from kvfold.plugins.tensorrt.node_form import INPUTS_ATTRIBUTE, SLOTS

Value = int | float | str
_TYPES: dict[str, type] = {"int": int, "float": float}  # QuantType is a str
ATTRIBUTE_TYPES: dict[str, type[Value]] = {
    **{field.name: _TYPES.get(str(field.type), str) for field in fields(Attributes)},
    INPUTS_ATTRIBUTE: str,
}
_REQUIRED = tuple(field.name for field in fields(Attributes) if field.default is MISSING)
_TOGETHER = (
    ("key", "value"),
    ("cos_cache", "sin_cache"),
    ("q_norm_weight", "k_norm_weight"),
    ("k_scale", "v_scale"),
)


@dataclass(frozen=True)
class Node:
    """One attention node: everything that is known before types and shapes are.

    Attributes:
        name: of the node, for messages.
        attributes: of the op.
        inputs: schema names of the inputs that the node has, in its order.
    """

    name: str
    attributes: Attributes
    inputs: tuple[str, ...]

    @property
    def writes(self) -> bool:
        """False on a consumer of another layer's cache."""
        return SLOTS in self.inputs

    @property
    def packed(self) -> bool:
        """The query holds key and value too; a consumer has neither."""
        return self.writes and "key" not in self.inputs

    @property
    def outputs(self) -> tuple[str, ...]:
        """Schema names of what the node returns, in order."""
        return OUTPUTS if self.writes else OUTPUTS[:1]

    def aliased_input(self, output: int) -> int:
        """Index of the input that an output shares its memory with; -1: none."""
        name = self.outputs[output].removesuffix("_out")
        return self.inputs.index(name) if name in self.inputs else -1

    def values(self) -> dict[str, Value]:
        """The node's attributes; `read_node` takes them back."""
        return {**asdict(self.attributes), INPUTS_ATTRIBUTE: ",".join(self.inputs)}


def read_node(name: str, values: Mapping[str, Any]) -> Node:
    """The node of a graph.

    Args:
        name: of the node.
        values: of its attributes, by name.

    Raises:
        KernelError: an attribute is missing, unknown, of the wrong type or not computed by the kernels.
    """
    try:
        attributes = _attributes(values)
        inputs = _inputs(values[INPUTS_ATTRIBUTE])
        _check_attributes(attributes)
        _check_inputs(attributes, inputs)
    except (KernelError, ValueError) as error:
        raise KernelError(f"attention node {name}: {error}") from None
    return Node(name, attributes, inputs)


def _attributes(values: Mapping[str, Any]) -> Attributes:
    for name in (*_REQUIRED, INPUTS_ATTRIBUTE):
        if name not in values:
            raise ValueError(f"attribute {name} is missing; lower the graph again with this kvfold")
    for name, value in values.items():
        if name not in ATTRIBUTE_TYPES:
            raise ValueError(f"attribute {name} is unknown; known are {', '.join(ATTRIBUTE_TYPES)}")
        if type(value) is not ATTRIBUTE_TYPES[name]:
            kind = ATTRIBUTE_TYPES[name].__name__
            raise ValueError(f"attribute {name} is {value!r}, and must be one {kind}")
    return Attributes(**{name: value for name, value in values.items() if name != INPUTS_ATTRIBUTE})


def _inputs(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name, count in Counter(names).items():
        if name not in INPUTS:
            raise ValueError(f"attribute inputs lists {name!r}; inputs are {', '.join(INPUTS)}")
        if count > 1:
            raise ValueError(f"attribute inputs lists {name} {count} times")
    return names


def _check_attributes(attributes: Attributes) -> None:
    heads, kv_heads = attributes.num_heads, attributes.kv_num_heads
    if kv_heads < 1 or heads < 1 or heads % kv_heads:
        raise ValueError(f"num_heads {heads} is not a multiple of kv_num_heads {kv_heads}")
    for name in ("k_quant_type", "v_quant_type"):
        if getattr(attributes, name) not in ("NONE", "PER_CHANNEL"):
            value = getattr(attributes, name)
            raise ValueError(f"{name} is {value!r}; the kernels have NONE and PER_CHANNEL")
    if attributes.k_quant_type != attributes.v_quant_type:
        raise ValueError(
            f"k_quant_type {attributes.k_quant_type} and v_quant_type {attributes.v_quant_type} differ"
        )
    if attributes.rotary_interleaved:
        raise ValueError("rotary_interleaved is 1; the kernels rotate the half-split layout (0) only")
    if attributes.do_rotary not in (0, 1):
        raise ValueError(f"do_rotary is {attributes.do_rotary}, and must be 0 or 1")
    if attributes.softcap < 0:
        raise ValueError(f"softcap is {attributes.softcap}, and must be 0 (off) or more")
    if attributes.local_window_size != -1 and attributes.local_window_size < 1:
        raise ValueError(
            f"local_window_size is {attributes.local_window_size}, and must be -1 (off), 1 or more"
        )
    if attributes.sink_size < 0:
        raise ValueError(f"sink_size is {attributes.sink_size}, and must be 0 or more")


def _check_inputs(attributes: Attributes, inputs: tuple[str, ...]) -> None:
    """A consumer has no slots; everything else that the schema requires must be there."""
    required = [name for name in INPUTS if name not in OPTIONAL_INPUTS and name != SLOTS]
    if attributes.do_rotary:
        required += ["cos_cache", "sin_cache"]
    if attributes.k_quant_type != "NONE":
        required += ["k_scale", "v_scale"]
    missing = [name for name in required if name not in inputs]
    if missing:
        raise ValueError(f"attribute inputs lacks {', '.join(missing)}")
    for pair in _TOGETHER:
        if len(set(pair) & set(inputs)) == 1:
            raise ValueError(f"attribute inputs must list both {pair[0]} and {pair[1]}, or neither")
    if SLOTS not in inputs and "key" in inputs:
        raise ValueError(f"attribute inputs lists key, which a consumer (no {SLOTS}) does not have")
    if attributes.k_quant_type == "NONE" and "k_scale" in inputs:
        raise ValueError("attribute inputs lists k_scale, which caches with k_quant_type NONE do not have")

"""What the creator refuses before types and shapes are known."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from kvfold.plugins.contract.errors import KernelError
from kvfold.plugins.paged_attention.schema import Attributes
from kvfold.plugins.tensorrt.attributes import read_node
from tests.plugins.tensorrt.attention_models import CONSUMER, DONOR, PRODUCER


def without(*names: str) -> str:
    return ",".join(name for name in PRODUCER.inputs if name not in names)


@pytest.mark.parametrize("node", [PRODUCER, DONOR, CONSUMER])
def test_attributes_come_back_as_they_were_written(node: Any) -> None:
    assert read_node(node.name, node.values()) == node


def test_only_what_has_no_default_must_be_there() -> None:
    values = {"num_heads": 4, "kv_num_heads": 2, "scale": 0.5, "do_rotary": 0}
    node = read_node("a", values | {"inputs": without("cos_cache", "sin_cache", "k_scale", "v_scale")})
    assert node.attributes == Attributes(4, 2, 0.5, do_rotary=0)


def test_a_consumer_returns_its_output_only() -> None:
    assert PRODUCER.outputs == ("output", "key_cache_out", "value_cache_out")
    assert CONSUMER.outputs == ("output",)
    assert [PRODUCER.aliased_input(index) for index in range(3)] == [-1, 1, 2]
    assert CONSUMER.aliased_input(0) == -1
    assert (PRODUCER.packed, DONOR.packed, CONSUMER.packed) == (True, False, False)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"heads": 3}, "attribute heads is unknown; known are num_heads, kv_num_heads, scale"),
    ({"scale": 1}, "attribute scale is 1, and must be one float"),
    ({"scale": 0.0}, "scale is 0.0, and must be a positive number"),
    ({"scale": -0.5}, "scale is -0.5, and must be a positive number"),
    ({"scale": math.inf}, "scale is inf, and must be a positive number"),
    ({"scale": math.nan}, "scale is nan, and must be a positive number"),
    ({"k_quant_type": 1}, "attribute k_quant_type is 1, and must be one str"),
    ({"do_rotary": True}, "attribute do_rotary is True, and must be one int"),
    ({"kv_num_heads": 0}, "num_heads 6 is not a multiple of kv_num_heads 0"),
    ({"num_heads": -6}, "num_heads -6 is not a multiple of kv_num_heads 2"),
    ({"k_quant_type": "PER_TENSOR"}, "k_quant_type is 'PER_TENSOR'; the kernels have NONE and PER_CHANNEL"),
    ({"v_quant_type": "NONE"}, "k_quant_type PER_CHANNEL and v_quant_type NONE differ"),
    ({"rotary_interleaved": 1}, "rotary_interleaved is 1; the kernels rotate the half-split layout (0) only"),
    ({"do_rotary": 2}, "do_rotary is 2, and must be 0 or 1"),
    ({"softcap": -1.0}, "softcap is -1.0, and must be 0 (off) or more"),
    ({"local_window_size": 0}, "local_window_size is 0, and must be -1 (off), 1 or more"),
    ({"sink_size": -1}, "sink_size is -1, and must be 0 or more"),
    ({"inputs": "query,cache"}, "attribute inputs lists 'cache'; inputs are query, key, value"),
    ({"inputs": ""}, "attribute inputs lists ''; inputs are query"),
    ({"inputs": without() + ",query"}, "attribute inputs lists query 2 times"),
    ({"inputs": without("block_table", "query")}, "attribute inputs lacks query, block_table"),
    ({"inputs": without("cos_cache")}, "attribute inputs lacks cos_cache"),
    ({"inputs": without("v_scale")}, "attribute inputs lacks v_scale"),
    ({"inputs": without() + ",key"}, "attribute inputs must list both key and value, or neither"),
    (
        {"inputs": without("slot_mapping") + ",key,value"},
        "attribute inputs lists key, which a consumer (no slot_mapping) does not have",
    ),
    (
        {"inputs": without() + ",k_norm_weight"},
        "attribute inputs must list both q_norm_weight and k_norm_weight, or neither",
    ),
    (
        {"k_quant_type": "NONE", "v_quant_type": "NONE"},
        "attribute inputs lists k_scale, which caches with k_quant_type NONE do not have",
    ),
]


@pytest.mark.parametrize(("changed", "message"), WRONG, ids=lambda each: str(each)[:40])
def test_wrong_attributes_are_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(KernelError) as caught:
        read_node("layers.3", PRODUCER.values() | changed)
    assert str(caught.value).startswith(f"attention node layers.3: {message}")


@pytest.mark.parametrize("name", ["num_heads", "kv_num_heads", "scale", "inputs"])
def test_missing_attributes_are_named(name: str) -> None:
    values = {key: value for key, value in PRODUCER.values().items() if key != name}
    with pytest.raises(KernelError, match=f"attention node a: attribute {name} is missing"):
        read_node("a", values)


def test_without_rope_its_tables_may_be_there_or_not() -> None:
    attributes = replace(PRODUCER.attributes, do_rotary=0)
    node = replace(PRODUCER, attributes=attributes)
    assert read_node(node.name, node.values()) == node
    bare = node.values() | {"inputs": without("cos_cache", "sin_cache")}
    assert "cos_cache" not in read_node(node.name, bare).inputs

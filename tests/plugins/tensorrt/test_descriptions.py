"""What types and shapes of a node's inputs are taken for, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kvfold.plugins.contract.errors import KernelError
from kvfold.plugins.cuda.launches import Shapes
from kvfold.plugins.tensorrt.attributes import Node
from kvfold.plugins.tensorrt.descriptions import Tensor, shapes_of, spec_of
from tests.plugins.tensorrt.attention_models import CONSUMER, DONOR, PRODUCER, SPEC

TENSORS = {
    "query": Tensor("float16", (7, 640)),
    "key": Tensor("float16", (7, 128)),
    "value": Tensor("float16", (7, 128)),
    "key_cache": Tensor("int8", (50, 32, 2, 64)),
    "value_cache": Tensor("int8", (50, 32, 2, 64)),
    "cumulative_sequence_length": Tensor("int32", (4,)),
    "past_seqlens": Tensor("int32", (3,)),
    "block_table": Tensor("int32", (3, 9)),
    "cos_cache": Tensor("float32", (1024, 32)),
    "sin_cache": Tensor("float32", (1024, 32)),
    "slot_mapping": Tensor("int32", (7,)),
    "head_sink": Tensor("float32", (6,)),
    "q_norm_weight": Tensor("float32", (64,)),
    "k_norm_weight": Tensor("float32", (64,)),
    "k_scale": Tensor("float32", (2, 1, 64)),
    "v_scale": Tensor("float32", (2, 1, 64)),
}


def inputs_of(node: Node, **changed: Tensor) -> list[Tensor]:
    tensors = TENSORS | ({} if node.packed else {"query": Tensor("float16", (7, 384))})
    return [(tensors | changed)[name] for name in node.inputs]


def test_a_producer_with_packed_qkv() -> None:
    assert spec_of(PRODUCER, inputs_of(PRODUCER)) == SPEC
    assert shapes_of(PRODUCER, inputs_of(PRODUCER)) == Shapes(tokens=7, sequences=3, table_width=9)


def test_a_producer_with_keys_and_values_apart() -> None:
    assert spec_of(DONOR, inputs_of(DONOR)) == SPEC
    with pytest.raises(KernelError, match=r"value has shape \[7, 64\], and must have \[7, 128\]"):
        spec_of(DONOR, inputs_of(DONOR, value=Tensor("float16", (7, 64))))


def test_a_consumer() -> None:
    assert spec_of(CONSUMER, inputs_of(CONSUMER)) == replace(SPEC, writes=False)
    assert shapes_of(CONSUMER, inputs_of(CONSUMER)) == Shapes(tokens=7, sequences=3, table_width=9)


def test_optional_inputs_choose_variants() -> None:
    node = replace(PRODUCER, inputs=(*PRODUCER.inputs, "head_sink", "q_norm_weight", "k_norm_weight"))
    assert spec_of(node, inputs_of(node)) == replace(SPEC, head_sink=True, qk_norm=True)


def test_sizes_that_are_not_known_yet_fit() -> None:
    unknown = {
        "query": Tensor("float16", (-1, 640)),
        "key_cache": Tensor("int8", (-1, 32, 2, 64)),
        "past_seqlens": Tensor("int32", (-1,)),
        "block_table": Tensor("int32", (-1, -1)),
    }
    assert spec_of(PRODUCER, inputs_of(PRODUCER, **unknown)) == SPEC


WRONG = [
    ("query", Tensor("float32", (7, 640)), "query is float32; the kernels compute float16 and bfloat16"),
    ("cos_cache", Tensor("float16", (1024, 32)), "cos_cache is float16, and must be float32"),
    ("slot_mapping", Tensor("int64", (7,)), "slot_mapping is int64, and must be int32"),
    (
        "value_cache",
        Tensor("float16", (50, 32, 2, 64)),
        "value_cache is float16, and must be int8 (k_quant_type is PER_CHANNEL)",
    ),
    ("key_cache", Tensor("int8", (50, 32, 128)), "key_cache has shape [50, 32, 128]; it must be [pages"),
    ("key_cache", Tensor("int8", (50, 32, 2, -1)), "key_cache has shape [50, 32, 2, ?]; it must be [pages"),
    ("key_cache", Tensor("int8", (50, 24, 2, 64)), "page size 24 is not a power of two; there are 16, 32"),
    ("key_cache", Tensor("int8", (50, 256, 2, 64)), "page size 256 has no kernel; there are 16, 32, 64, 128"),
    ("key_cache", Tensor("int8", (50, 32, 2, 80)), "head size 80 has no kernel; there are 64, 96, 128, 256"),
    ("key_cache", Tensor("int8", (50, 32, 3, 64)), "key_cache has shape [50, 32, 3, 64], and must"),
    ("value_cache", Tensor("int8", (49, 32, 2, 64)), "value_cache has shape [49, 32, 2, 64], and must"),
    ("query", Tensor("float16", (7, 384)), "query has shape [7, 384], and must have [7, 640]"),
    ("cumulative_sequence_length", Tensor("int32", (3,)), "cumulative_sequence_length has shape [3]"),
    ("block_table", Tensor("int32", (4, 9)), "block_table has shape [4, 9], and must have [3, ?]"),
    ("slot_mapping", Tensor("int32", (8,)), "slot_mapping has shape [8], and must have [7]"),
    ("sin_cache", Tensor("float32", (1023, 32)), "sin_cache has shape [1023, 32], and must have [1024, 32]"),
    ("past_seqlens", Tensor("int32", ()), "past_seqlens has shape [], and must have [?]"),
    ("k_scale", Tensor("float32", (2, 64)), "k_scale has shape [2, 64], and must have [2, 1, 64]"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "tensor", "message"), WRONG, ids=lambda each: str(each)[:48])
def test_wrong_types_and_shapes_are_named(name: str, tensor: Tensor, message: str) -> None:
    with pytest.raises(KernelError) as caught:
        spec_of(PRODUCER, inputs_of(PRODUCER, **{name: tensor}))
    assert str(caught.value).startswith(f"attention node layers.0.attention: {message}")


def test_inputs_are_counted() -> None:
    with pytest.raises(KernelError, match="has 10 inputs, and its attribute inputs lists query, key_cache"):
        spec_of(PRODUCER, inputs_of(PRODUCER)[:-1])

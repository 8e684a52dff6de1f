"""Lowering for ONNX Runtime's CUDA provider: the graph's form, its numbers, and ONNX Runtime's view of it.

No op has a kernel of the CUDA provider's here; `make gpu-check` runs them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from kvfold.export.graph.lower_cuda import lower_for_cuda
from kvfold.export.graph.model_files import load_model, save_graph
from kvfold.export.graph.passes.cuda_attention import KERNELS_ATTRIBUTE, name_kernels
from kvfold.export.model.model_config import ModelConfig
from kvfold.plugins.contract.errors import TargetError
from kvfold.plugins.cuda.attention_spec import ActivationDtype
from kvfold.plugins.cuda.cuda_library import register_ops
from kvfold.plugins.paged_attention.schema import DOMAIN, INPUTS
from tests.export.graph.evaluated_graph import check_numbers
from tests.export.graph.tiny_graphs import graph_of
from tests.tiny_model import VOCAB_SIZE, kv_scales, tiny_config, tiny_decoder, tiny_plan

EMPTY = ir.Model(ir.Graph((), (), nodes=()), ir_version=10)
SCRATCH = len(INPUTS)
Lower = Callable[[ActivationDtype, str, bool], Path]


def config() -> ModelConfig:
    """A producer, its consumer and a global layer, with a head size that has kernels."""
    biases = dict.fromkeys(("attention_bias", "output_bias", "mlp_bias"), True)
    return tiny_config(num_hidden_layers=3, hidden_size=64, head_dim=64, qk_norm="head", **biases)


@pytest.fixture(scope="module")
def lower(tmp_path_factory: pytest.TempPathFactory) -> Lower:
    """The path of the lowered graph, by types of activations and caches, and kind of its sinks."""

    @cache
    def lower(dtype: ActivationDtype, kv_dtype: str, head_sink: bool) -> Path:
        directory, plan = (
            tmp_path_factory.mktemp("graph"),
            tiny_plan(config(), "character", kv_dtype, head_sink),
        )
        graph = graph_of(tiny_decoder(config(), plan), kv_scales(plan), directory)
        (directory / "cuda").mkdir()
        counts = lower_for_cuda(graph, directory / "cuda", plan, dtype)
        assert counts == {
            "matmul_nbits": 0,
            "activation_dtype": 1 + 13 + 12 + 7,  # embedding, linears, biases, norms
            "float_logits": 1,
            "skip_norms": 6,  # all but the first, which reads the embedding
            "quick_gelu": 3,
            "packed_qkv": 1,
            "cuda_attention": 3,
        }
        return directory / "cuda" / "model.onnx"

    return lower


def attention(path: Path) -> list[onnx.NodeProto]:
    model = onnx.load(path, load_external_data=False)
    return [node for node in model.graph.node if node.domain == DOMAIN]


def test_nodes_have_the_form_of_the_op(lower: Lower) -> None:
    producer, consumer, last = attention(lower("float16", "int8", False))
    given = [
        {name for name, each in zip(INPUTS, node.input, strict=False) if each}
        for node in (producer, consumer)
    ]
    assert given[0] - given[1] == {"slot_mapping"}  # QKV is packed, and a consumer's query alone
    assert given[1] >= {"query", "key_cache", "value_cache", "k_scale", "q_norm_weight"}
    caches = [consumer.input[INPUTS.index(name)] for name in ("key_cache", "value_cache")]
    assert caches == producer.output[1:3]
    assert list(consumer.output[1:3]) == ["", ""]
    scratch = [node.output[3] for node in (producer, consumer, last)]
    assert len(set(scratch)) == 3 and all(scratch)
    assert not any(producer.input[SCRATCH:])
    assert [node.input[SCRATCH] for node in (consumer, last)] == scratch[:2]


def test_the_kernels_are_named_without_a_copy_of_the_weights(lower: Lower) -> None:
    path = lower("float16", "int8", True)
    data = path.with_name("model.onnx.data").read_bytes()
    model = load_model(path)
    name_kernels(model, "abc")
    save_graph(model, path)
    assert [a.s for node in attention(path) for a in node.attribute if a.name == KERNELS_ATTRIBUTE] == [
        b"abc"
    ] * 3
    assert path.with_name("model.onnx.data").read_bytes() == data
    assert path.stat().st_size < len(data)
    onnx.load(path)  # every weight is still found


@pytest.mark.parametrize("head_sink", [False, True])
@pytest.mark.parametrize(
    ("dtype", "kv_dtype", "missing"),
    [
        ("float16", "int8", "PagedAttention(1)"),
        ("float16", "float16", "PagedAttention(1)"),
        ("bfloat16", "int8", "Gemm(13)"),  # it comes first, and the CPU has no bfloat16
        ("bfloat16", "bfloat16", "Gemm(13)"),
    ],
)
def test_only_kernels_are_missing_without_cuda(
    dtype: ActivationDtype, kv_dtype: str, missing: str, head_sink: bool, lower: Lower
) -> None:
    """Inference with all of its checks comes before the search for kernels."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    register_ops(options)
    path = lower(dtype, kv_dtype, head_sink)
    with pytest.raises(Exception, match="NOT_IMPLEMENTED") as caught:
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    assert f"Could not find an implementation for {missing} node" in str(caught.value)


@pytest.mark.parametrize(("kv_dtype", "head_sink"), [("float16", False), ("int8", False), ("float16", True)])
@torch.no_grad()
def test_the_float16_graph_computes_what_the_decoder_does(
    kv_dtype: str, head_sink: bool, lower: Lower
) -> None:
    tokens = np.random.default_rng(6).integers(0, VOCAB_SIZE, 60)
    plan = tiny_plan(config(), "character", kv_dtype, head_sink)
    check_numbers(lower("float16", kv_dtype, head_sink), config(), plan, tokens)


def test_what_the_kernels_do_not_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"as float32; .* reads float16 and int8: set kv_dtype"):
        lower_for_cuda(EMPTY, tmp_path, tiny_plan(config(), "character", "float32"), "float16")
    small = tiny_config(head_dim=32)
    with pytest.raises(TargetError, match="a head has 32 channels, the cuda target reads 64 to 256"):
        lower_for_cuda(EMPTY, tmp_path, tiny_plan(small, "character", "int8"), "float16")

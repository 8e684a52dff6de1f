"""The exported step, in PyTorch and as ONNX, held against the dense decoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from kvfold.export.graph.lower_cpu import lower_for_cpu
from kvfold.export.graph.model_files import save_model
from kvfold.export.model.dense_attention import DenseAttention
from kvfold.plugins.contract import step as contract
from kvfold.plugins.contract.errors import ExportError, TargetError
from tests.export.graph.tiny_engines import NUM_PAGES, EagerEngine, build_cpu_engine, run_chunks, tokens_for
from tests.export.graph.tiny_graphs import graph_of
from tests.paging import Pager
from tests.tiny_model import dense_logits, kv_scales, tiny_config, tiny_decoder, tiny_plan

ALL_BIASES = {"attention_bias": True, "output_bias": True, "mlp_bias": True}


@pytest.mark.parametrize("preset", ["identity", "horizon", "mqa", "character"])
@pytest.mark.parametrize("head_sink", [False, True])
@pytest.mark.parametrize("features", [{}, ALL_BIASES, {"qk_norm": "head"}], ids=str)
@torch.no_grad()
def test_paged_decoder_equals_the_dense_one(preset: str, head_sink: bool, features: dict[str, bool]) -> None:
    config = tiny_config(**features)
    plan = tiny_plan(config, preset, head_sink=head_sink)
    decoder = tiny_decoder(config, plan)
    tokens = tokens_for(1)
    paged = run_chunks(EagerEngine(decoder, {}), Pager(plan, NUM_PAGES), tokens)
    dense = dense_logits(decoder, torch.from_numpy(tokens)[None])[0].numpy()
    np.testing.assert_allclose(paged, dense, atol=2e-4)


@torch.no_grad()
def test_int8_caches_round_like_the_dense_simulation() -> None:
    config = tiny_config()
    plan = tiny_plan(config, "character", "int8")
    decoder, scales = tiny_decoder(config, plan), kv_scales(plan)
    tokens = tokens_for(2)
    paged = run_chunks(EagerEngine(decoder, scales), Pager(plan, NUM_PAGES), tokens)
    dense = decoder(torch.from_numpy(tokens)[None], DenseAttention(config, plan, scales))[0].numpy()
    np.testing.assert_allclose(paged, dense, atol=2e-4)


@pytest.mark.parametrize(
    ("preset", "tied", "head_sink"),
    [
        ("identity", False, False),
        ("horizon", True, False),
        ("character", False, False),
        ("character", False, True),
    ],
)
@torch.no_grad()
def test_float_engine_equals_pytorch(preset: str, tied: bool, head_sink: bool, tmp_path: Path) -> None:
    config = tiny_config(tie_word_embeddings=tied, **dict.fromkeys(ALL_BIASES, tied))
    plan = tiny_plan(config, preset, head_sink=head_sink)
    decoder = tiny_decoder(config, plan)
    engine = build_cpu_engine(decoder, {}, tmp_path, "float32")
    tokens = tokens_for(3)
    onnx_logits = run_chunks(engine, Pager(plan, NUM_PAGES), tokens)
    dense = dense_logits(decoder, torch.from_numpy(tokens)[None])[0].numpy()
    np.testing.assert_allclose(onnx_logits, dense, atol=2e-3)


@torch.no_grad()
def test_int8_engine_rows_do_not_depend_on_chunking_or_batch(tmp_path: Path) -> None:
    config = tiny_config(**ALL_BIASES)
    plan = tiny_plan(config, "character", "int8")
    engine = build_cpu_engine(tiny_decoder(config, plan), kv_scales(plan), tmp_path, "int8")
    tokens = tokens_for(4)
    chunked = run_chunks(engine, Pager(plan, NUM_PAGES), tokens)
    pager = Pager(plan, NUM_PAGES)
    both = engine.execute(pager.step({0: tokens.tolist(), 1: tokens[::-1].tolist()}))
    np.testing.assert_array_equal(both[: len(tokens)], chunked)


def test_names_and_external_data(tmp_path: Path) -> None:
    config = tiny_config()
    plan = tiny_plan(config, "character", "int8")
    path = tmp_path / contract.MODEL_FILE
    save_model(graph_of(tiny_decoder(config, plan), kv_scales(plan), tmp_path), path)
    model = onnx.load(str(path), load_external_data=False)
    assert [value.name for value in model.graph.input] == contract.input_names(plan)
    assert [value.name for value in model.graph.output] == contract.output_names(plan)
    names = {node.name for node in model.graph.node}
    assert {"model.layers.1.self_attn.qkv_proj.Gemm", "model.layers.3.self_attn.PagedAttention"} <= names
    axes = {
        d.dim_param for value in model.graph.input for d in value.type.tensor_type.shape.dim if d.dim_param
    }
    assert {"tokens", "batch", "rows", "table_width_global", "num_pages_global"} <= axes
    large = [t for t in model.graph.initializer if np.prod(t.dims) > 1000]
    assert large
    assert all(t.data_location == onnx.TensorProto.EXTERNAL for t in large)


@pytest.mark.parametrize("tied", [False, True])
def test_tokens_are_looked_up_in_the_heads_own_table_where_it_is_tied(tied: bool, tmp_path: Path) -> None:
    config = tiny_config().model_copy(update={"tie_word_embeddings": tied})
    plan = tiny_plan(config, "identity")
    lower_for_cpu(graph_of(tiny_decoder(config, plan), {}, tmp_path), tmp_path, plan, {"lm_head": "int8_a16"})
    nodes = {
        node.op_type: node for node in onnx.load(tmp_path / "model.onnx", load_external_data=False).graph.node
    }
    read = [set(nodes[name].input[1:3]) for name in ("Int8Embedding", "Int8Linear")]
    assert (read[0] == read[1]) == tied


def test_lowering_refuses_what_it_cannot_find(tmp_path: Path) -> None:
    config = tiny_config()
    plan = tiny_plan(config, "identity")
    graph = graph_of(tiny_decoder(config, plan), {}, tmp_path)
    with pytest.raises(ExportError, match="int8_linears matched 0 places, 1 were expected"):
        lower_for_cpu(graph, tmp_path, plan, {"model.layers.9.mlp.down_proj": "int8"})
    half = tiny_plan(config, "identity", "float16")
    with pytest.raises(TargetError, match="float16"):
        lower_for_cpu(graph, tmp_path, half, {})

"""A process that exports and lowers a model whose weights are made on access, and prints what that took.

Arguments: what to make (`cpu`, `cuda`, `tensorrt` or `onnx`), layers, a folder.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from kvfold.export.checkpoint.weights import expected_shapes
from kvfold.export.graph.graph_weights import load_graph
from kvfold.export.graph.linears import find_linears
from kvfold.export.graph.lower_cpu import lower_for_cpu
from kvfold.export.graph.lower_cuda import lower_for_cuda
from kvfold.export.graph.lower_tensorrt import lower_for_tensorrt
from kvfold.export.graph.model_files import save_model
from kvfold.export.graph.onnx_from_decoder import export_graph
from kvfold.export.graph.passes import exact_storage
from kvfold.export.quantize.precision import Precision
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.plugins.contract.plan_presets import Preset, build_plan
from kvfold.plugins.contract.step import MODEL_FILE
from tests.tiny_model import kv_scales, tiny_config


class MadeWeights(Mapping[str, Tensor]):
    """Random tensors that nobody keeps, in bfloat16's numbers."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes = shapes

    def __getitem__(self, name: str) -> Tensor:
        return torch.randn(self.shapes[name], generator=torch.Generator().manual_seed(0)).bfloat16().float()

    def __contains__(self, name: object) -> bool:
        return name in self.shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def peak() -> int:
    """Largest resident memory of this process so far, in bytes; `ru_maxrss` begins with its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def make(kind: str, layers: int, directory: Path) -> FoldPlan:
    """Export the graph and write what is asked for, as the stages do; returns the plan."""
    sizes = {
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
    }
    config = tiny_config(num_hidden_layers=layers, head_dim=64, **sizes)
    plan = build_plan(Preset(preset="identity", kv_dtype="int8"), config.attention_shape)
    graph = export_graph(config, plan, kv_scales(plan), directory / "graph.onnx")
    model = load_graph(graph, plan, MadeWeights(expected_shapes(config)))
    int8: dict[str, Precision] = {linear.name: "int8" for linear in find_linears(model)}
    if kind == "cpu":
        lower_for_cpu(model, directory, plan, int8)
    elif kind == "cuda":
        lower_for_cuda(model, directory, plan, "float16")
    elif kind == "tensorrt":
        lower_for_tensorrt(model, directory, plan, int8, dict.fromkeys(int8, 0.03), "float16")
    else:
        exact_storage.apply(model)
        save_model(model, directory / MODEL_FILE)
    return plan


if __name__ == "__main__":
    before = peak()
    make(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
    print(peak() - before)

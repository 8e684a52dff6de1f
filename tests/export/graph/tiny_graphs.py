"""A decoder's target-neutral graph with its weights, as the stages hand it to lowering."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir
from torch import Tensor

from kvfold.export.graph.graph_weights import load_graph
from kvfold.export.graph.onnx_from_decoder import export_graph
from kvfold.export.model.decoder import Decoder


def graph_of(decoder: Decoder, scales: Mapping[str, Tensor], directory: Path) -> ir.Model:
    """The graph, by way of a file in `directory`."""
    path = export_graph(decoder.config, decoder.plan, scales, directory / "graph.onnx")
    return load_graph(path, decoder.plan, decoder.state_dict())

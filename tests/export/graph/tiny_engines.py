"""Engines of a tiny decoder, the exported module in PyTorch and its graph on the CPU; a sequence in steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from kvfold.export.graph.linears import find_linears
from kvfold.export.graph.lower_cpu import lower_for_cpu
from kvfold.export.graph.paged_decoder import PagedDecoder
from kvfold.export.model.decoder import Decoder
from kvfold.export.quantize.precision import Precision
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.runtime.engine.engine_config import EngineConfig
from kvfold.runtime.engine.engine_files import EngineFiles
from kvfold.runtime.engine.onnxruntime_engine import OnnxRuntimeEngine
from kvfold.runtime.engine.protocol import StepInputs
from tests.export.graph.tiny_graphs import graph_of
from tests.paging import Pager, budget_of
from tests.tiny_model import VOCAB_SIZE

NUM_PAGES = 16
CHUNKS = (37, 1, 20, 1, 1)  # one sequence's steps; the window is 32


class EagerEngine:
    """The exported module run in PyTorch with the reference op."""

    def __init__(self, decoder: Decoder, scales: dict[str, torch.Tensor]) -> None:
        self.module = PagedDecoder(decoder, scales)
        self.plan = decoder.plan
        self.caches = [
            torch.zeros(
                NUM_PAGES,
                self.plan.page_size,
                bank.num_key_value_heads,
                bank.head_dim,
                dtype=torch.int8 if bank.kv_dtype == "int8" else torch.float32,
            )
            for bank in self.plan.banks
            for _ in range(2)
        ]

    def execute(self, step: StepInputs) -> np.ndarray:
        tensors = [
            step.input_ids,
            step.cumulative_sequence_length,
            step.past_seqlens,
            step.logits_indices,
        ]
        for group in self.plan.groups:
            tables = step.tables[group.name]
            tensors += [tables.block_table, tables.slot_mapping]
        logits, *self.caches = self.module(*map(torch.from_numpy, tensors), *self.caches)
        result: np.ndarray = logits.numpy()
        return result


def run_chunks(engine: EagerEngine | OnnxRuntimeEngine, pager: Pager, tokens: np.ndarray) -> np.ndarray:
    rows, start = [], 0
    for length in CHUNKS:
        chunk = tokens[start : start + length].tolist()
        rows.append(engine.execute(pager.step({0: chunk})).copy())
        start += length
    return np.concatenate(rows)


def build_cpu_engine(
    decoder: Decoder, scales: dict[str, torch.Tensor], directory: Path, precision: Precision
) -> OnnxRuntimeEngine:
    """The engine of a decoder, all linears in one precision."""
    return cpu_engine(graph_of(decoder, scales, directory), decoder.plan, directory, precision)


def cpu_engine(graph: ir.Model, plan: FoldPlan, directory: Path, precision: Precision) -> OnnxRuntimeEngine:
    """The engine of a target-neutral graph, which is changed in place."""
    engine_directory = directory / "cpu"
    engine_directory.mkdir()
    names = {linear.name: precision for linear in find_linears(graph)}
    lower_for_cpu(graph, engine_directory, plan, names)
    config = EngineConfig(
        target="cpu", backend="cpu", vocab_size=VOCAB_SIZE, max_context_length=256, fingerprint="test"
    )
    files = EngineFiles(engine_directory, config, plan)
    return OnnxRuntimeEngine.load(files, budget_of(files, NUM_PAGES), threads=2)


def tokens_for(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCAB_SIZE, sum(CHUNKS))

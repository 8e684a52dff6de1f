"""A lowered graph run by ONNX's reference evaluator in its own types, attention by the op's reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from kvfold.export.model.dense_attention import DenseAttention
from kvfold.export.model.model_config import ModelConfig
from kvfold.plugins.contract import step as contract
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.plugins.paged_attention.reference import paged_attention
from kvfold.plugins.paged_attention.schema import DOMAIN, INPUTS, OP_TYPE, Attributes
from kvfold.plugins.tensorrt.node_form import INPUTS_ATTRIBUTE
from kvfold.runtime.engine.protocol import StepInputs
from tests.paging import Pager
from tests.tiny_model import kv_scales, tiny_decoder

NUM_PAGES = 16
NUMPY_DTYPES = {"float16": np.float16, "int8": np.int8}


class GpuAttention(OpRun):
    """The node for a GPU, where a consumer has no slots.

    TensorRT's lists its inputs (`plugins.tensorrt.node_form`); ONNX Runtime's has them in the schema's order,
    and scratch after them (`passes.cuda_attention`).
    """

    op_domain, op_type = DOMAIN, OP_TYPE

    def _run(self, *inputs: np.ndarray | None, **attributes: Any) -> tuple[np.ndarray, ...]:
        listed = attributes.pop(INPUTS_ATTRIBUTE, None)
        names = INPUTS if listed is None else listed.split(",")
        # By its name: the evaluator gives an absent input what an absent output was.
        triples = zip(names, inputs, self.onnx_node.input, strict=False)
        given = {name: each for name, each, tensor in triples if tensor and each is not None}
        scratch = (np.zeros(0, np.uint8),) if listed is None else ()
        if "slot_mapping" not in given:
            tokens, cache = len(given["query"]), given["key_cache"].shape
            nothing = np.zeros((tokens, cache[2] * cache[3]), given["query"].dtype)
            given |= {"key": nothing, "value": nothing, "slot_mapping": np.full(tokens, -1, np.int32)}
            output = attend(given, attributes)[:1]
            return output if listed else (*output, given["key_cache"], given["value_cache"], *scratch)
        return (*attend(given, attributes), *scratch)


class StockAttention(OpRun):
    """The stock op: the same mathematics without `sink_size`."""

    op_domain, op_type = "com.microsoft", OP_TYPE

    def _run(self, *inputs: np.ndarray | None, **attributes: Any) -> tuple[np.ndarray, ...]:
        given = {name: value for name, value in zip(INPUTS, inputs, strict=False) if value is not None}
        return attend(given, attributes | {"sink_size": 0})[: len(self.onnx_node.output)]


class WideNorm(OpRun):
    """RMSNormalization with its squares in float32, as `stash_type` 1 says and the evaluator does not."""

    op_domain, op_type = "", "RMSNormalization"

    def _run(self, x: np.ndarray, weight: np.ndarray, **attributes: Any) -> tuple[np.ndarray]:
        wide = torch.from_numpy(x).float()
        normed = torch.nn.functional.rms_norm(wide, weight.shape, eps=attributes["epsilon"])
        return (normed.numpy().astype(x.dtype) * weight,)


class SkipNorm(OpRun):
    """RMSNormalization of a sum; the sum is its fourth output."""

    op_domain, op_type = "com.microsoft", "SkipSimplifiedLayerNormalization"

    def _run(
        self, x: np.ndarray, skip: np.ndarray, weight: np.ndarray, **attributes: Any
    ) -> tuple[np.ndarray, ...]:
        stream, nothing = x + skip, np.zeros(0, np.float32)
        normed = torch.nn.functional.rms_norm(
            torch.from_numpy(stream).float(), weight.shape, eps=attributes["epsilon"]
        )
        return (normed.numpy() * weight.astype(np.float32)).astype(x.dtype), nothing, nothing, stream


class QuickGelu(OpRun):
    """x * sigmoid(alpha * x), each of the two rounded to the type of x, as the CUDA provider does."""

    op_domain, op_type = "com.microsoft", "QuickGelu"

    def _run(self, x: np.ndarray, alpha: float) -> tuple[np.ndarray]:
        sigmoid = torch.sigmoid(torch.from_numpy(x).float() * alpha)
        return (x * sigmoid.numpy().astype(x.dtype),)


def attend(given: dict[str, np.ndarray], attributes: dict[str, Any]) -> tuple[np.ndarray, ...]:
    """The reference on numpy arrays; the output has the query's type."""
    tensors = [torch.tensor(given[name]) if name in given else None for name in INPUTS]
    values = [attributes[name] for name in Attributes.__dataclass_fields__]
    output, *caches = (result.numpy() for result in paged_attention(*tensors, *values))
    return output.astype(given["query"].dtype), *caches


class EvaluatedGraph:
    """An engine for tests: steps in, logits out; the caches live here."""

    def __init__(self, path: Path, plan: FoldPlan) -> None:
        # The evaluator finds an op by the name of its class.
        ops = [
            type(op.op_type, (op,), {})
            for op in (GpuAttention, StockAttention, WideNorm, SkipNorm, QuickGelu)
        ]
        self.evaluator = ReferenceEvaluator(onnx.load(path), new_ops=ops)
        self.plan = plan
        self.caches = {
            name: np.zeros(
                (NUM_PAGES, plan.page_size, bank.num_key_value_heads, bank.head_dim),
                NUMPY_DTYPES[bank.kv_dtype],
            )
            for bank in plan.banks
            for name in contract.cache_inputs(bank.layer)
        }

    def execute(self, step: StepInputs) -> np.ndarray:
        """Run one step."""
        feeds = {
            contract.INPUT_IDS: step.input_ids,
            contract.CUMULATIVE_SEQUENCE_LENGTH: step.cumulative_sequence_length,
            contract.PAST_SEQLENS: step.past_seqlens,
            contract.LOGITS_INDICES: step.logits_indices,
        }
        for group, tables in step.tables.items():
            feeds[contract.block_table(group)] = tables.block_table
            feeds[contract.slot_mapping(group)] = tables.slot_mapping
        results: list[np.ndarray] = self.evaluator.run(None, feeds | self.caches)  # type: ignore[assignment]
        self.caches = dict(zip(self.caches, results[1:], strict=True))
        return results[0]


def check_numbers(path: Path, config: ModelConfig, plan: FoldPlan, tokens: np.ndarray) -> None:
    """Hold a float16 graph of the tiny decoder against the float32 one, on a sequence in three steps.

    A rounding of the weights alone moves int8 cache bytes by one, so it sets the scale: the graph, whose
    activations are rounded too, may be three times as far off.
    """
    engine, pager = EvaluatedGraph(path, plan), Pager(plan, NUM_PAGES)
    steps = np.split(tokens, [len(tokens) - 19, len(tokens) - 18])
    logits = np.concatenate([engine.execute(pager.step({0: step.tolist()})) for step in steps])
    assert logits.dtype == np.float32
    exact = dense_logits(config, plan, tokens, torch.float32)
    rounding = np.abs(dense_logits(config, plan, tokens, torch.float16) - exact).max()
    assert np.abs(logits - exact).max() < 3 * rounding < 0.1 * np.abs(exact).max()


def dense_logits(config: ModelConfig, plan: FoldPlan, tokens: np.ndarray, weights: torch.dtype) -> np.ndarray:
    """Logits [L, vocab] of the dense decoder in float32, its weights rounded to a type first."""
    decoder = tiny_decoder(config, plan)
    for parameter in decoder.parameters():
        parameter.data = parameter.data.to(weights).float()
    mixer = DenseAttention(config, plan, kv_scales(plan))
    logits: np.ndarray = decoder(torch.from_numpy(tokens)[None], mixer)[0].numpy()
    return logits

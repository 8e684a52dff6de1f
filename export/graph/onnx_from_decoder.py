"""Write a folded decoder as a target-neutral ONNX graph: float linears, attention as PagedAttention.

The graph names its weights and holds none: they are inputs behind those of a step, and `load_graph` binds
them. So a model of any size is traced in the same memory.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnxscript.values import Opset
from torch import Tensor, nn
from torch.export import Dim

from kvfold.export.graph.paged_decoder import PagedDecoder
from kvfold.export.model.decoder import Decoder
from kvfold.export.model.model_config import ModelConfig
from kvfold.plugins.contract import step
from kvfold.plugins.contract.errors import ExportError
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.plugins.contract.progress import Progress, part, unheard
from kvfold.plugins.paged_attention.onnx_schema import register_schema
from kvfold.plugins.paged_attention.schema import DOMAIN, INPUTS, OP_TYPE, OPSET, OUTPUTS, Attributes

# Where these begin in its time, for the progress display (28 layers).
TRACING, TRANSLATING, CHECKING = 0.44, 0.52, 0.97
ONNX_OPSET = 23  # the first with RMSNormalization
_TORCH_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
}
_ATTRIBUTES = tuple(Attributes.__dataclass_fields__)


def export_graph(
    config: ModelConfig,
    plan: FoldPlan,
    scales: Mapping[str, Tensor],
    path: Path,
    progress: Progress = unheard,
) -> Path:
    """Write the graph of a model folded by `plan` to `path`, and return that.

    Args:
        config: the unfolded model.
        plan: how it is folded.
        scales: static KV scales for every int8 bank, `key_scale.<layer>` and `value_scale.<layer>`.
        path: of the file.
        progress: told of the share done, roughly: most of the work is the exporter's own.

    Raises:
        ExportError: the exported graph does not hold what the plan promises.
    """
    progress(0, "preparing the decoder")
    decoder = _stand_in(config, plan)
    _tell_layers(decoder, part(progress, TRACING, TRANSLATING - TRACING))
    model = _to_onnx(PagedDecoder(decoder, scales), plan)
    progress(CHECKING, "checking the graph")
    _name_nodes(model)
    _check_against_plan(model, plan)
    _give_weights_up(model, decoder)
    ir.save(model, path)
    onnx.checker.check_model(str(path))
    return path


def _stand_in(config: ModelConfig, plan: FoldPlan) -> Decoder:
    """A decoder whose parameters have a shape and one number each, which all differ.

    The exporter's optimiser drops a constant that equals another.
    """
    with torch.device("meta"):
        decoder = Decoder(config, plan)
    for number, (name, parameter) in enumerate(list(decoder.named_parameters())):
        module, _, leaf = name.rpartition(".")
        number_alone = torch.tensor(float(number)).expand(parameter.shape)
        setattr(decoder.get_submodule(module), leaf, nn.Parameter(number_alone, requires_grad=False))
    if config.tie_word_embeddings:
        decoder.lm_head.weight = decoder.model.embed_tokens.weight
    return decoder.eval()


def _tell_layers(decoder: Decoder, progress: Progress) -> None:
    """Tell of each layer when it is traced, which is once; what follows the last one says nothing itself."""
    layers = decoder.model.layers
    for index, layer in enumerate(layers, start=1):
        note = f"layer {index} of {len(layers)}" if index < len(layers) else "translating the graph"
        layer.register_forward_pre_hook(partial(_tell, progress, index / len(layers), note))


def _tell(progress: Progress, fraction: float, note: str, *_: object) -> None:
    progress(fraction, note)


def _to_onnx(module: PagedDecoder, plan: FoldPlan) -> ir.Model:
    register_schema()
    inputs, shapes = _example_step(plan)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns that torchvision is absent
    with torch.no_grad(), warnings.catch_warnings():
        # torch warns of its own deprecations and of axes with equal names: nothing a user can act on.
        warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")
        warnings.filterwarnings("ignore", message="# The axis name", category=UserWarning)
        program = torch.onnx.export(
            module.eval(),
            tuple(inputs),
            dynamic_shapes=(tuple(shapes),),
            input_names=step.input_names(plan),
            output_names=step.output_names(plan),
            opset_version=ONNX_OPSET,
            custom_translation_table={torch.ops.kvfold.paged_attention.default: _translate},
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise ExportError("torch.onnx.export returned no program; check the installed torch version")
    model: ir.Model = program.model
    model.opset_imports[DOMAIN] = OPSET
    return model


def _translate(*arguments: Any) -> Any:
    """The torch custom op's arguments are the ONNX node's inputs, then its attributes."""
    inputs, attributes = arguments[: len(INPUTS)], arguments[len(INPUTS) :]
    node = getattr(Opset(DOMAIN, OPSET), OP_TYPE)
    return node(*inputs, **dict(zip(_ATTRIBUTES, attributes, strict=True)), _outputs=len(OUTPUTS))


def _example_step(plan: FoldPlan) -> tuple[list[Tensor], list[dict[int, Any]]]:
    """A small valid step and which of its axes are dynamic, in `step.input_names` order."""
    tokens, batch, rows = Dim("tokens"), Dim("batch"), Dim("rows")
    inputs = [
        torch.zeros(7, dtype=torch.int64),
        torch.tensor([0, 3, 7], dtype=torch.int32),
        torch.zeros(2, dtype=torch.int32),
        torch.tensor([2, 6]),
    ]
    shapes: list[dict[int, Any]] = [{0: tokens}, {0: batch + 1}, {0: batch}, {0: rows}]
    for group in plan.groups:
        inputs += [
            torch.tensor([[0, -1, -1], [1, -1, -1]], dtype=torch.int32),
            torch.tensor([0, 1, 2, 16, 17, 18, 19], dtype=torch.int32),
        ]
        shapes += [{0: batch, 1: Dim(f"table_width_{group.name}")}, {0: tokens}]
    for bank in plan.banks:
        shape = (5, plan.page_size, bank.num_key_value_heads, bank.head_dim)
        for _ in step.cache_inputs(bank.layer):
            inputs.append(torch.zeros(shape, dtype=_TORCH_DTYPES[bank.kv_dtype]))
            shapes.append({0: Dim(f"num_pages_{bank.group}")})
    return inputs, shapes


def _name_nodes(model: ir.Model) -> None:
    """Nodes by module path and op, weights by checkpoint name, as a person would look for them."""
    for name, value in list(model.graph.initializers.items()):
        model.graph.initializers.pop(name)
        value.name = name.removeprefix("decoder.")
        model.graph.initializers[value.name] = value
    taken: dict[str, int] = {}
    for node in model.graph:
        scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes", "")
        path = _last_scope(scopes).removeprefix("decoder.")
        name = f"{path}.{node.op_type}" if path else node.op_type
        taken[name] = taken.get(name, 0) + 1
        node.name = name if taken[name] == 1 else f"{name}.{taken[name]}"
        node.metadata_props.clear()
    for value in (output for node in model.graph for output in node.outputs):
        value.metadata_props.clear()


def _last_scope(scopes: str) -> str:
    """`['', 'model', 'model.layers.0', 'node']` is how the exporter writes a module path."""
    parts = [part.strip(" '\"") for part in scopes.strip("[]").split(",")]
    return parts[-2] if len(parts) > 1 else ""


def _check_against_plan(model: ir.Model, plan: FoldPlan) -> None:
    """One attention node a layer; a consumer reads its donor's output and owns no cache."""
    nodes = [node for node in model.graph if (node.domain, node.op_type) == (DOMAIN, OP_TYPE)]
    if len(nodes) != len(plan.layers):
        raise ExportError(f"the graph has {len(nodes)} attention nodes, the plan {len(plan.layers)} layers")
    for index, node in enumerate(nodes):
        if not plan.is_producer(index):
            node.resize_outputs(1)
    names = [value.name for value in model.graph.inputs]
    if names != step.input_names(plan):
        raise ExportError(f"the graph's inputs are {names}, the plan asks for {step.input_names(plan)}")


def _give_weights_up(model: ir.Model, decoder: Decoder) -> None:
    """Turn the stand-ins' constants into inputs of the same names; a tied one has either of two."""
    names = [name for name, _ in decoder.named_parameters(remove_duplicate=False)]
    given_up = [value for name in names if (value := model.graph.initializers.pop(name, None)) is not None]
    if len(given_up) != len(list(decoder.parameters())):
        raise ExportError("the graph lacks weights of the model; check the installed torch version")
    for value in given_up:
        value.const_value = None
        model.graph.inputs.append(value)

"""The kernels of an engine for ONNX Runtime's CUDA provider: for which GPUs, and for which nodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from kvfold.plugins.contract.errors import KvfoldError
from kvfold.plugins.contract.step import MODEL_FILE
from kvfold.plugins.cuda.attention_spec import ARCHITECTURES, ActivationDtype, AttentionSpec, variants_of
from kvfold.plugins.paged_attention.schema import Attributes
from kvfold.runtime.engine.engine_config import KERNELS_FOLDER

if TYPE_CHECKING:
    import onnx_ir as ir

    from kvfold.pipeline.recipe.recipe import Recipe
    from kvfold.plugins.contract.fold_plan import FoldPlan


def activations_of(recipe: Recipe) -> ActivationDtype:
    """Type of the activations: bfloat16 where the plan stores a cache so, else what the recipe says."""
    return "bfloat16" if "bfloat16" in recipe.plan.kv_dtypes else recipe.cuda.activation_dtype


def architectures_of(recipe: Recipe) -> tuple[int, ...]:
    """SM versions: those of the recipe, else that of this machine's GPU, and without one all with kernels."""
    if recipe.cuda.architectures:
        return recipe.cuda.architectures
    from kvfold.runtime.engine.cuda.device import Device

    try:
        device = Device.open()
    except KvfoldError:  # none is there, or it is busy or full: nothing is to run on it now
        return tuple(sm for sm in ARCHITECTURES if sm > 75 or activations_of(recipe) == "float16")
    try:
        return (device.architecture,)
    finally:
        device.close()


def compile_kernels(
    directory: Path,
    plan: FoldPlan,
    dtype: ActivationDtype,
    architectures: tuple[int, ...],
    progress: Callable[[float], None],
) -> str:
    """Compile what an engine's nodes and its sampler need into its folder, and name it in each node.

    Args:
        directory: of the engine; it holds the graph.
        plan: of the graph.
        dtype: of its activations.
        architectures: SM versions of the GPUs.
        progress: told the fraction done.

    Returns:
        sha256 of the kernels.

    Raises:
        KernelError: a node has no kernel for an architecture.
    """
    from kvfold.export.graph.attention import find_attention
    from kvfold.export.graph.model_files import load_model, save_graph
    from kvfold.export.graph.passes.cuda_attention import name_kernels
    from kvfold.plugins.cuda.compile_kernels import compile_library
    from kvfold.plugins.cuda.sampling_launches import SAMPLING_VARIANTS

    model = load_model(directory / MODEL_FILE)
    variants = [
        variant for node in find_attention(model) for variant in variants_of(spec_of(node, plan, dtype))
    ]
    (directory / KERNELS_FOLDER).mkdir()
    variants += SAMPLING_VARIANTS.values()
    library = compile_library(variants, architectures, directory / KERNELS_FOLDER, progress)
    name_kernels(model, library.sha256)
    save_graph(model, directory / MODEL_FILE)
    return library.sha256


def spec_of(node: ir.Node, plan: FoldPlan, dtype: ActivationDtype) -> AttentionSpec:
    """What the op will make of a node of the form of `passes.cuda_attention`, of a plan's graph."""
    from kvfold.export.graph.attention import present_inputs

    names = {field.name for field in fields(Attributes)} & node.attributes.keys()
    attributes = Attributes(**{name: node.attributes[name].value for name in names})
    given = present_inputs(node)
    return AttentionSpec(
        attributes=attributes,
        head_size=plan.head_dim,
        page_size=plan.page_size,
        activation_dtype=dtype,
        cache_dtype="int8" if attributes.k_quant_type == "PER_CHANNEL" else dtype,
        writes="slot_mapping" in given,
        qk_norm="q_norm_weight" in given,
        head_sink="head_sink" in given,
    )

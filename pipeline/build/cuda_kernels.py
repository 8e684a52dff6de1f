"""The kernels of an engine for ONNX Runtime's CUDA provider: for which GPUs, and for which nodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from kvfold.pipeline.machine.engine_gpu import gpu_architecture
from kvfold.plugins.contract.errors import KernelError
from kvfold.plugins.contract.step import MODEL_FILE
from kvfold.plugins.cuda.attention_spec import ARCHITECTURES, ActivationDtype, AttentionSpec, variants_of
from kvfold.plugins.cuda.kernel_library import KernelLibrary, runs_on
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
    """SM versions to compile for: those asked for, and where none are, all that have kernels."""
    every = tuple(sm for sm in ARCHITECTURES if sm > 75 or activations_of(recipe) == "float16")
    return _asked_for(recipe) or every


def why_kernels_lack(recipe: Recipe, root: Path) -> str | None:
    """Why the kernels of a bundle's engine do not do: some GPU that is asked for has none of them."""
    try:
        built = KernelLibrary.load(root / "engine" / recipe.target / KERNELS_FOLDER).architectures
    except KernelError as error:  # bytes that rotted on the disk
        return str(error).partition(";")[0]
    lacking = [sm for sm in _asked_for(recipe) if not any(runs_on(each, sm) for each in built)]
    return f"it has no kernels for SM {', '.join(map(str, lacking))}" if lacking else None


def _asked_for(recipe: Recipe) -> tuple[int, ...]:
    """SM versions of the recipe, else that of this machine's GPU; none where there is no GPU to run on."""
    if recipe.cuda.architectures:
        return recipe.cuda.architectures
    here = gpu_architecture(recipe.target)
    return () if here is None else (here,)


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

"""Stage `build-cuda`: the graph lowered for ONNX Runtime's CUDA provider, its kernels, and the facts of it.

Kernels are compiled ahead of time, so no GPU is needed.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from kvfold.pipeline.build.bound_graph import bound_graph
from kvfold.pipeline.build.engine_facts import engine_config
from kvfold.pipeline.build.engine_folder import engine_folder, engine_stage

if TYPE_CHECKING:
    from kvfold.pipeline.recipe.recipe import Recipe
    from kvfold.pipeline.workspace.stage import Job, Stage
    from kvfold.pipeline.workspace.workspace import Workspace


def run(workspace: Workspace, job: Job) -> None:
    """Write model.onnx, its data, kernels/ and engine.json.

    Raises:
        ExportError: a graph pass did not find what it must, or a weight is beyond the activations' type.
        KernelError: a node has no kernel for an architecture.
        TargetError: the kernels do not read the type of a cache, or heads of this size.
    """
    from kvfold.export.graph.lower_cuda import lower_for_cuda
    from kvfold.pipeline.build.cuda_kernels import activations_of, architectures_of, compile_kernels
    from kvfold.plugins.contract.progress import part

    recipe, plan, directory = workspace.recipe, workspace.plan, engine_folder(workspace, job)
    dtype = activations_of(recipe)
    passes = lower_for_cuda(
        bound_graph(workspace), directory, plan, dtype, workspace.int4_blocks, part(job.progress, 0, 0.5)
    )
    compile_kernels(directory, plan, dtype, architectures_of(recipe), part(job.progress, 0.5, 0.5))
    engine_config(workspace, "cuda", passes).save(directory)


def settings(recipe: Recipe) -> object:
    """What decides an engine besides the bundle's files and its GPUs: dials, the compiler's version."""
    from kvfold.pipeline.build.cuda_kernels import activations_of

    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = ""
    return [activations_of(recipe), triton]


def why_lacking(recipe: Recipe, root: Path) -> str | None:
    """See `why_kernels_lack`."""
    from kvfold.pipeline.build.cuda_kernels import why_kernels_lack

    return why_kernels_lack(recipe, root)


def stage(target: str) -> Stage:
    """The stage of a target."""
    doing = "compiling kernels and building the engine"
    return engine_stage(target, doing, settings, run, __name__, why_lacking)

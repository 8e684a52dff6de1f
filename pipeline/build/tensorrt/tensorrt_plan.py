"""Build a TensorRT plan: lowered graph, kernels, plan, and the facts of it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir

from kvfold.export.graph.lower_tensorrt import lower_for_tensorrt
from kvfold.export.graph.model_files import load_model
from kvfold.pipeline.build.bound_graph import bound_graph
from kvfold.pipeline.build.engine_facts import engine_config
from kvfold.pipeline.build.tensorrt.architectures import architectures_of
from kvfold.pipeline.build.tensorrt.build_job import BuildJob, BuildResult
from kvfold.pipeline.build.tensorrt.kernel_specs import attention_nodes, spec_of
from kvfold.pipeline.build.tensorrt.limits import decode_limits, max_pages, prefill_limits, profile_shapes
from kvfold.pipeline.build.tensorrt.read_log import differences, read_layers
from kvfold.pipeline.build.tensorrt.run_worker import run_worker
from kvfold.pipeline.machine.targets import TARGETS
from kvfold.pipeline.workspace.fetch import MODEL_CACHE
from kvfold.pipeline.workspace.workspace import Workspace
from kvfold.pipeline.workspace.write_bundle import STAGING
from kvfold.plugins.contract.errors import TargetError
from kvfold.plugins.contract.step import MODEL_FILE
from kvfold.plugins.cuda.attention_spec import variants_of
from kvfold.plugins.cuda.compile_kernels import compile_library
from kvfold.plugins.cuda.kernel_library import KernelLibrary
from kvfold.plugins.cuda.sampling_launches import SAMPLING_VARIANTS
from kvfold.plugins.tensorrt.node_form import PLUGIN_NAME, PLUGIN_NAMESPACE, PLUGIN_VERSION
from kvfold.runtime.bundle import SCALES
from kvfold.runtime.engine.engine_config import (
    KERNELS_FOLDER,
    PLAN_FILE,
    StepLimits,
    TensorRTFacts,
    TensorRTLibrary,
)

LOG_FILE = "build.log"
# Of the whole build, by a first run on one core: Triton takes most.
_KERNELS_SHARE = 0.6


def build_tensorrt_plan(workspace: Workspace, directory: Path, progress: Callable[[float], None]) -> None:
    """Write model.plan, kernels/, build.log and engine.json into an existing folder.

    Raises:
        ExportError: a graph pass did not find what it must.
        KernelError: a node has no kernel for an architecture.
        TargetError: the plan's caches are not readable, or the library failed or built something else.
    """
    root, section = workspace.root, workspace.recipe.tensorrt
    context_length = workspace.config.max_position_embeddings
    chunk = workspace.recipe.validate_on.prefill_chunk
    decode = decode_limits(section, workspace.plan, context_length)
    prefill = prefill_limits(section, workspace.plan, context_length, chunk)
    architectures = architectures_of(workspace.recipe)
    log_of_failure = root / f"{workspace.recipe.target}-{LOG_FILE}"
    precision = workspace.quantization.precision
    with tempfile.TemporaryDirectory(dir=root / STAGING) as folder:
        lowered = Path(folder)
        passes = lower_for_tensorrt(
            bound_graph(workspace),
            lowered,
            workspace.plan,
            precision,
            _activation_scales(workspace),
            section.activation_dtype,
        )
        model = load_model(lowered / MODEL_FILE)
        kernels = _compile_kernels(workspace, model, architectures, directory, progress)
        job = _job(workspace, lowered, directory, architectures, (decode, prefill))
        result = run_worker(
            job,
            directory / LOG_FILE,
            log_of_failure,
            lambda fraction: progress(_KERNELS_SHARE + (1 - _KERNELS_SHARE) * fraction),
        )
    linears = {
        name: "int8" if kind == "int8" else section.activation_dtype for name, kind in precision.items()
    }
    unconfirmed = _check_log(job, directory, log_of_failure, linears, model)
    facts = _facts(workspace, kernels, architectures, (decode, prefill), linears, unconfirmed, result)
    engine_config(workspace, "tensorrt", passes, facts).save(directory)


def _library(workspace: Workspace) -> TensorRTLibrary:
    library = TARGETS[workspace.recipe.target].library
    assert library is not None, "the target builds plans"
    return library


def _activation_scales(workspace: Workspace) -> dict[str, float]:
    prefix = "activation_scale."
    scales = workspace.tensors(SCALES)
    return {
        name.removeprefix(prefix): float(scale) for name, scale in scales.items() if name.startswith(prefix)
    }


def _compile_kernels(
    workspace: Workspace,
    model: ir.Model,
    architectures: tuple[int, ...],
    directory: Path,
    progress: Callable[[float], None],
) -> KernelLibrary:
    dtype = workspace.recipe.tensorrt.activation_dtype
    specs = [spec_of(node, workspace.plan, dtype) for node in attention_nodes(model)]
    variants = [variant for spec in specs for variant in variants_of(spec)]
    (directory / KERNELS_FOLDER).mkdir()
    return compile_library(
        [*variants, *SAMPLING_VARIANTS.values()],
        architectures,
        directory / KERNELS_FOLDER,
        lambda fraction: progress(_KERNELS_SHARE * fraction),
    )


def _job(
    workspace: Workspace,
    lowered: Path,
    directory: Path,
    architectures: tuple[int, ...],
    limits: tuple[StepLimits, StepLimits],
) -> BuildJob:
    library = _library(workspace)
    return BuildJob(
        library=library,
        model=lowered / MODEL_FILE,
        plan=directory / PLAN_FILE,
        kernels=directory / KERNELS_FOLDER,
        architectures=architectures,
        profiles=tuple(profile_shapes(workspace.plan, each) for each in limits),
        # TensorRT-RTX times nothing ahead of time.
        timing_cache=MODEL_CACHE.resolve() / "tensorrt-timing.cache" if library == "tensorrt" else None,
    )


def _facts(
    workspace: Workspace,
    kernels: KernelLibrary,
    architectures: tuple[int, ...],
    limits: tuple[StepLimits, StepLimits],
    linears: dict[str, str],
    unconfirmed: tuple[str, ...],
    result: BuildResult,
) -> TensorRTFacts:
    decode, prefill = limits
    return TensorRTFacts(
        library=_library(workspace),
        version=result.version,
        architectures=architectures,
        plugin=f"{PLUGIN_NAMESPACE}::{PLUGIN_NAME}",
        plugin_version=PLUGIN_VERSION,
        kernels_sha256=kernels.sha256,
        activation_dtype=workspace.recipe.tensorrt.activation_dtype,
        decode=decode,
        prefill=prefill,
        max_pages=max_pages(workspace.plan),
        linears=linears,
        unconfirmed=unconfirmed,
        build_seconds=result.seconds,
        peak_build_bytes=result.peak_bytes,
    )


def _check_log(
    job: BuildJob, directory: Path, log_of_failure: Path, linears: dict[str, str], model: ir.Model
) -> tuple[str, ...]:
    """What the log does not confirm of the engine; for TensorRT-RTX that is an error.

    TensorRT words its log differently, in ways that nobody has read here yet.
    """
    built = read_layers((directory / LOG_FILE).read_text())
    problems = differences(built, linears, [_module_path(node) for node in attention_nodes(model)])
    if problems and job.library == "tensorrt_rtx":
        shutil.copyfile(directory / LOG_FILE, log_of_failure)
        raise TargetError(
            "\n  ".join([f"the built plan differs from the graph in {len(problems)} places:", *problems[:20]])
            + "\nthe library compiles the graph in another way than kvfold knows; "
            f"its log is in {log_of_failure}"
        )
    return problems


def _module_path(node: ir.Node) -> str:
    return (node.name or "").rpartition(".")[0]

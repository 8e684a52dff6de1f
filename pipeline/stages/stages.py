"""The stages from a recipe to a report, in order, as data."""

from __future__ import annotations

from dataclasses import replace

from kvfold.pipeline.recipe.recipe import HealSection
from kvfold.pipeline.stages import stage_inputs as inputs
from kvfold.pipeline.stages import stage_work as work
from kvfold.pipeline.workspace.stage import Stage

_NEUTRAL = (
    Stage(
        name="checkpoint",
        doing="reading the checkpoint",
        needs=(),
        settings=inputs.describe_source,
        code=(*inputs.CHECKPOINT, "pipeline/workspace/fetch.py"),
        run=work.run_checkpoint,
    ),
    Stage(
        name="calibration",
        doing="preparing calibration text",
        needs=("checkpoint",),
        settings=lambda recipe: inputs.fingerprint_texts(recipe.calibration),
        code=inputs.TEXT,
        run=work.run_calibration,
    ),
    Stage(
        name="fold",
        doing="folding heads and layers",
        needs=("checkpoint", "calibration"),
        settings=inputs.describe_fold,
        code=(
            *inputs.CHECKPOINT,
            "export/fold",
            "export/heal/healed_adapter.py",
            "export/heal/student/low_rank.py",
            "pipeline/recipe/recipe.py",
        ),
        run=work.run_fold,
    ),
    Stage(
        name="training",
        doing="preparing training text",
        needs=("checkpoint",),
        settings=lambda recipe: (
            inputs.fingerprint_texts(recipe.heal.text) if isinstance(recipe.heal, HealSection) else None
        ),
        code=inputs.TEXT,
        run=work.run_training,
    ),
    Stage(
        name="heal",
        doing="training what folding changed",
        needs=("checkpoint", "calibration", "fold", "training"),
        settings=inputs.describe_heal,
        code=inputs.HEAL,
        run=work.run_heal,
    ),
    Stage(
        name="quantize",
        doing="calibrating int8",
        needs=("checkpoint", "calibration", "fold", "heal"),
        settings=lambda recipe: recipe.quantize.model_dump(mode="json"),
        code=(*inputs.MODEL, "export/quantize", "plugins/int8_linear"),
        run=work.run_quantize,
    ),
    Stage(
        name="onnx",
        doing="exporting the graph",
        needs=("checkpoint", "fold", "quantize"),
        settings=lambda recipe: None,
        code=inputs.GRAPH,
        run=work.run_onnx,
    ),
    Stage(
        name="heldout",
        doing="preparing held-out text",
        needs=("checkpoint",),
        settings=lambda recipe: inputs.fingerprint_text(recipe.validate_on),
        code=inputs.TEXT,
        run=work.run_heldout,
    ),
    Stage(
        name="evaltext",
        doing="preparing text to evaluate on",
        needs=("checkpoint",),
        settings=lambda recipe: inputs.fingerprint_text(recipe.evaluate),
        code=inputs.TEXT,
        run=work.run_evaltext,
    ),
)


def build_stage(target: str) -> str:
    """Name of the stage that builds a target's engine."""
    return f"build-{target}"


def report_stage(target: str) -> str:
    """Name of the stage that ends a target's validation."""
    return f"report-{target}"


def evaluate_stage(target: str) -> str:
    """Name of the stage that measures what a target's engine costs."""
    return f"evaluate-{target}"


def _target_stages(target: str, build: Stage) -> tuple[Stage, ...]:
    """The engine of one target, its validation and its report; those of several targets live side by side."""
    folded = ("checkpoint", "fold", "quantize")
    return (
        replace(build, name=build_stage(target), needs=(*folded, "onnx"), target=target),
        Stage(
            name=f"validate-{target}",
            doing="comparing original, folded and engine",
            needs=(*folded, build_stage(target), "heldout"),
            settings=lambda recipe: [recipe.validate_on.prefill_chunk, recipe.validate_on.description],
            code=inputs.SUBJECTS,
            run=work.run_validate,
            target=target,
        ),
        Stage(
            name=evaluate_stage(target),
            doing="measuring what the fold costs",
            needs=(*folded, build_stage(target), "evaltext"),
            settings=inputs.describe_evaluation,
            code=(*inputs.SUBJECTS, *inputs.TEXT, "pipeline/quality", "runtime/text/tokenizer.py"),
            run=work.run_evaluate,
            target=target,
        ),
        Stage(
            name=report_stage(target),
            doing="writing the report",
            needs=(*folded, build_stage(target), f"validate-{target}"),
            settings=lambda recipe: [recipe.name, recipe.validate_on.thresholds.model_dump(mode="json")],
            code=(*inputs.MODEL, *inputs.REPORT),
            run=work.run_report,
            target=target,
        ),
    )


_BUILD_CPU = Stage(
    name="build",
    doing="building the engine",
    needs=(),
    settings=lambda recipe: None,
    code=(*inputs.GRAPH, *inputs.FACTS, "pipeline/build/build_cpu.py"),
    run=work.run_build_cpu,
)
_BUILD_CUDA = replace(
    _BUILD_CPU,
    code=(*inputs.GRAPH, *inputs.FACTS, "pipeline/build/build_cuda.py"),
    run=work.run_build_cuda,
)
_BUILD_TENSORRT = replace(
    _BUILD_CPU,
    doing="compiling kernels and building the plan",
    settings=inputs.describe_tensorrt,
    code=(
        *(*inputs.GRAPH, *inputs.FACTS, *inputs.GPU_KERNELS, "pipeline/build/tensorrt"),
        *(
            "pipeline/workspace/stage.py",
            "pipeline/workspace/write_bundle.py",
            "runtime/engine/tensorrt/device.py",
        ),
    ),
    run=work.run_build_tensorrt,
)
STAGES = (
    *_NEUTRAL,
    *_target_stages("cpu", _BUILD_CPU),
    *_target_stages("cuda", _BUILD_CUDA),
    *_target_stages("tensorrt", _BUILD_TENSORRT),
    *_target_stages("tensorrt-rtx", _BUILD_TENSORRT),
)

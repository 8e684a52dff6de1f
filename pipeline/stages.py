"""The stages from a recipe to a report, in order, as data. Heavy imports happen inside each stage."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pipeline.evaluate.settings import SHIPPED_PASSAGES
from pipeline.recipe import DEMO_MODEL, HealSection, Recipe
from pipeline.recipe_sections import KEYWORDS, Texts, TextSection
from pipeline.stage import Report, Stage, hash_code
from pipeline.workspace import (
    ADAPTER,
    CALIBRATION_TOKENS,
    EVALUATION_TOKENS,
    FOLD_ERRORS,
    FOLDED_WEIGHTS,
    HEAL_FOLDER,
    HEAL_LOSSES,
    HEALED_WEIGHTS,
    HELDOUT_TOKENS,
    SOURCE,
    TRAINING_TOKENS,
    Workspace,
    read_text,
)
from runtime.bundle import (
    CONFIG,
    FOLD_PLAN,
    QUANTIZATION,
    SCALES,
    TOKENIZER,
    WEIGHTS,
    hash_file,
)

Progress = Callable[[float], None]


def _describe_source(recipe: Recipe) -> object:
    """The source and, for local files, their sizes and times: hashing gigabytes on every run is no option.

    When these change, the checkpoint stage hashes the content; later stages go by that alone. A
    tokenizer.json beside a GGUF file is read instead of the file's own vocabulary. The demo model is no path.
    """
    if recipe.model.source == DEMO_MODEL:
        return DEMO_MODEL
    path = Path(recipe.model.source)
    files = sorted(path.rglob("*")) if path.is_dir() else [path, path.parent / TOKENIZER]
    stats = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files if p.is_file()]
    return [recipe.model.source, stats]


def fingerprint_text(section: TextSection) -> object:
    """Which text a section asks for: its settings and the content of its file; what is fetched is pinned."""
    content = None if section.source in KEYWORDS else hash_file(Path(section.source))
    return [section.source, content, section.tokens, section.sequence_length, section.seed]


def _fingerprint_texts(sections: Texts) -> object:
    return [fingerprint_text(section) for section in sections]


def _describe_evaluation(recipe: Recipe) -> object:
    """What `kvfold eval` measures, the passages by content; its text is another stage's."""
    section = recipe.evaluate
    shipped = section.last_words == SHIPPED_PASSAGES
    passages = None if shipped else [Path(section.last_words).name, hash_file(Path(section.last_words))]
    others = section.model_dump(mode="json", exclude={"source", "last_words"})
    return [others, section.description, passages, recipe.validate_on.prefill_chunk]


def _run_checkpoint(workspace: Workspace, output: Path, progress: Progress) -> None:
    checkpoint = workspace.checkpoint
    (output / CONFIG).write_text(checkpoint.config.model_dump_json(indent=2) + "\n")
    (output / SOURCE).write_text(json.dumps({"fingerprint": checkpoint.fingerprint}) + "\n")
    checkpoint.tokenizer.save(output)


def _run_calibration(workspace: Workspace, output: Path, progress: Progress) -> None:
    _write_tokens(workspace, workspace.recipe.calibration, output / CALIBRATION_TOKENS)


def _run_heldout(workspace: Workspace, output: Path, progress: Progress) -> None:
    _write_tokens(workspace, (workspace.recipe.validate_on,), output / HELDOUT_TOKENS)


def _run_evaltext(workspace: Workspace, output: Path, progress: Progress) -> None:
    _write_tokens(workspace, (workspace.recipe.evaluate,), output / EVALUATION_TOKENS)


def _run_training(workspace: Workspace, output: Path, progress: Progress) -> None:
    """A recipe that trains nothing needs no text: the stage writes no file."""
    if isinstance(workspace.recipe.heal, HealSection):
        _write_tokens(workspace, workspace.recipe.heal.text, output / TRAINING_TOKENS)


def _write_tokens(workspace: Workspace, sections: Texts, path: Path) -> None:
    """Token sequences int64 [N, sequence_length], kept because the model may have to write them."""
    import torch
    from safetensors.torch import save_file

    tokens = torch.cat([read_text(section, workspace.checkpoint) for section in sections])
    if len(sections) > 1:
        tokens = tokens[torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0))]
    path.parent.mkdir()
    save_file({"tokens": tokens.contiguous()}, path)


def _describe_fold(recipe: Recipe) -> object:
    """Plan and dials, and the content of the adapter that stands in for folding."""
    adapter = hash_file(recipe.adapter) if recipe.adapter else None
    return [recipe.plan.model_dump(mode="json"), recipe.fold.model_dump(mode="json"), adapter]


def _run_fold(workspace: Workspace, output: Path, progress: Progress) -> None:
    from safetensors.torch import save_file

    from export.fold.fold import FoldedModel, fold_weights
    from export.heal.adapter import load_adapter, merge

    checkpoint, recipe = workspace.checkpoint, workspace.recipe
    plan = recipe.build_plan(checkpoint.config.attention_shape)
    if recipe.adapter:
        adapter = load_adapter(recipe.adapter, checkpoint.fingerprint, plan)
        merged = merge(checkpoint.config, checkpoint.weights, adapter.plan, adapter.tensors)
        folded = FoldedModel(adapter.plan, merged, errors={})
    else:
        tokens = workspace.tensors(CALIBRATION_TOKENS)["tokens"]
        folded = fold_weights(checkpoint.config, checkpoint.weights, plan, tokens, recipe.fold)
    (output / FOLD_PLAN).write_text(folded.plan.model_dump_json(indent=2) + "\n")
    (output / FOLD_ERRORS).parent.mkdir()
    (output / FOLD_ERRORS).write_text(json.dumps(folded.errors) + "\n")
    save_file({name: weight.contiguous() for name, weight in folded.weights.items()}, output / FOLDED_WEIGHTS)


def _describe_heal(recipe: Recipe) -> object:
    """The dials that decide the result; texts count by the tokens they gave."""
    if not isinstance(recipe.heal, HealSection):
        return None
    quantize = recipe.quantize.model_dump(mode="json") if recipe.heal.int8_tokens else None
    excluded = {"text", "start", "checkpoint_seconds"}
    start = recipe.heal.start and hash_file(Path(recipe.heal.start))
    return [recipe.heal.model_dump(mode="json", exclude=excluded), start, quantize]


def _run_heal(workspace: Workspace, output: Path, progress: Report) -> None:
    """Without a section to train by, no file: quantize then reads the folded weights."""
    settings = workspace.recipe.heal
    if not isinstance(settings, HealSection):
        return
    from safetensors.torch import save_file

    from export.heal.adapter import load_adapter, merge, save_adapter
    from export.heal.heal import Healing, heal

    checkpoint, plan, root = workspace.checkpoint, workspace.plan, workspace.root
    tokens, calibration = workspace.tensors(TRAINING_TOKENS)["tokens"], None
    read = [SOURCE, FOLD_PLAN, FOLDED_WEIGHTS, TRAINING_TOKENS]
    if settings.int8_tokens:
        calibration = workspace.tensors(CALIBRATION_TOKENS)["tokens"]
        read.append(CALIBRATION_TOKENS)
    inputs = [hash_file(root / name) for name in read]
    key = json.dumps([_describe_heal(workspace.recipe), hash_code(_HEAL), inputs], sort_keys=True)
    recipe, config, base = workspace.recipe, checkpoint.config, checkpoint.weights
    healing = Healing(config, base, plan, tokens, settings, recipe.quantize, calibration)
    earlier = recipe.adapter
    start = load_adapter(earlier, checkpoint.fingerprint, plan).tensors if earlier else None
    adapter = heal(healing, workspace.tensors(FOLDED_WEIGHTS), root / HEAL_FOLDER, key, progress, start)
    save_adapter(output / ADAPTER, adapter, checkpoint.fingerprint, plan)
    (output / HEALED_WEIGHTS).parent.mkdir()
    healed = merge(config, base, plan, adapter)
    save_file({name: weight.contiguous() for name, weight in healed.items()}, output / HEALED_WEIGHTS)
    shutil.copyfile(root / HEAL_FOLDER / "loss.jsonl", output / HEAL_LOSSES)


def _run_quantize(workspace: Workspace, output: Path, progress: Progress) -> None:
    from safetensors.torch import save_file

    from export.quantize.calibrate import calibrate

    tokens = workspace.tensors(CALIBRATION_TOKENS)["tokens"]
    calibrated = calibrate(
        workspace.config, workspace.healed, workspace.plan, tokens, workspace.recipe.quantize
    )
    save_file(dict(calibrated.weights), output / WEIGHTS)
    save_file(dict(calibrated.scales), output / SCALES)
    (output / QUANTIZATION).write_text(calibrated.precision.model_dump_json(indent=2) + "\n")


def _run_onnx(workspace: Workspace, output: Path, progress: Progress) -> None:
    from export.graph.onnx_from_decoder import export_onnx
    from export.model.decoder import Decoder

    decoder = Decoder.from_weights(workspace.config, workspace.plan, workspace.tensors(WEIGHTS))
    with warnings.catch_warnings():
        # torch warns of its own deprecations and of axes with equal names: nothing a user can act on.
        warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")
        warnings.filterwarnings("ignore", message="# The axis name", category=UserWarning)
        export_onnx(decoder, workspace.tensors(SCALES), output)


def _tensorrt_settings(recipe: Recipe) -> object:
    from pipeline.tensorrt.architectures import build_settings

    return build_settings(recipe)


def _engine_folder(workspace: Workspace, output: Path) -> Path:
    directory = output / "engine" / workspace.recipe.target
    directory.mkdir(parents=True)
    return directory


def _run_build_cpu(workspace: Workspace, output: Path, progress: Progress) -> None:
    from pipeline.build_cpu import build_cpu

    build_cpu(workspace, _engine_folder(workspace, output))


def _run_build_cuda(workspace: Workspace, output: Path, progress: Progress) -> None:
    from pipeline.build_cuda import build_cuda

    build_cuda(workspace, _engine_folder(workspace, output))


def _run_build_tensorrt(workspace: Workspace, output: Path, progress: Progress) -> None:
    from pipeline.tensorrt.build import build_tensorrt

    build_tensorrt(workspace, _engine_folder(workspace, output), progress)


def _run_validate(workspace: Workspace, output: Path, progress: Progress) -> None:
    from pipeline.validate.measure import measure

    measure(workspace, output, progress)


def _run_evaluate(workspace: Workspace, output: Path, progress: Progress) -> None:
    from pipeline.evaluate.measure import measure

    measure(workspace, output, progress)


def _run_report(workspace: Workspace, output: Path, progress: Progress) -> None:
    from pipeline.report.write import write_report

    write_report(workspace, output)


# Source that a stage's result comes from; tests/pipeline/test_stages.py follows the imports.
EVERY_STAGE = ("pipeline/stages.py", "pipeline/workspace.py")
_MODEL = (*EVERY_STAGE, "export/model", "plugins/fold_plan.py", "plugins/plan_presets.py")
_CHECKPOINT = (*_MODEL, "export/checkpoint", "plugins/tokenizer_config.py")
_TEXT = (*_CHECKPOINT, "export/calibration", "pipeline/fetch.py", "plugins/chat_template.py")
_HEAL = (*_CHECKPOINT, "export/fold", "export/heal", "export/quantize", "plugins/int8_linear")
_GRAPH = (
    *_MODEL,
    "export/graph",
    "export/quantize/precision.py",
    "plugins/cuda/attention_spec.py",
    "plugins/int8_linear",
    "plugins/paged_attention",
    "plugins/step.py",
    "plugins/tensorrt/node.py",
)
_FACTS = ("pipeline/engine_config.py", "runtime/engine/config.py", "runtime/engine/protocol.py")
_GPU_KERNELS = ("plugins/cuda", "plugins/tensorrt")
_ENGINE = (
    *_GPU_KERNELS,
    "runtime/engine",
    "plugins/cpu",
    "plugins/int8_linear",
    "plugins/paged_attention",
    "plugins/step.py",
)
_SUBJECTS = (
    *_CHECKPOINT,
    *_ENGINE,
    "pipeline/validate",
    "runtime/checks.py",
    "runtime/config.py",
    "runtime/memory",
    "runtime/scheduler/step_builder.py",
)
_REPORT = (
    "pipeline/report",
    "pipeline/templates",
    "pipeline/validate/results.py",
    "pipeline/kv_bytes.py",
    "pipeline/tool_versions.py",
    "export/quantize/precision.py",
)

_NEUTRAL = (
    Stage(
        name="checkpoint",
        doing="reading the checkpoint",
        needs=(),
        settings=_describe_source,
        code=(*_CHECKPOINT, "pipeline/fetch.py"),
        run=_run_checkpoint,
    ),
    Stage(
        name="calibration",
        doing="preparing calibration text",
        needs=("checkpoint",),
        settings=lambda recipe: _fingerprint_texts(recipe.calibration),
        code=_TEXT,
        run=_run_calibration,
    ),
    Stage(
        name="fold",
        doing="folding heads and layers",
        needs=("checkpoint", "calibration"),
        settings=_describe_fold,
        code=(
            *_CHECKPOINT,
            "export/fold",
            "export/heal/adapter.py",
            "export/heal/low_rank.py",
            "pipeline/recipe.py",
        ),
        run=_run_fold,
    ),
    Stage(
        name="training",
        doing="preparing training text",
        needs=("checkpoint",),
        settings=lambda recipe: (
            _fingerprint_texts(recipe.heal.text) if isinstance(recipe.heal, HealSection) else None
        ),
        code=_TEXT,
        run=_run_training,
    ),
    Stage(
        name="heal",
        doing="training what folding changed",
        needs=("checkpoint", "calibration", "fold", "training"),
        settings=_describe_heal,
        code=_HEAL,
        run=_run_heal,
    ),
    Stage(
        name="quantize",
        doing="calibrating int8",
        needs=("checkpoint", "calibration", "fold", "heal"),
        settings=lambda recipe: recipe.quantize.model_dump(mode="json"),
        code=(*_MODEL, "export/quantize", "plugins/int8_linear"),
        run=_run_quantize,
    ),
    Stage(
        name="onnx",
        doing="exporting the graph",
        needs=("checkpoint", "fold", "quantize"),
        settings=lambda recipe: None,
        code=_GRAPH,
        run=_run_onnx,
    ),
    Stage(
        name="heldout",
        doing="preparing held-out text",
        needs=("checkpoint",),
        settings=lambda recipe: fingerprint_text(recipe.validate_on),
        code=_TEXT,
        run=_run_heldout,
    ),
    Stage(
        name="evaltext",
        doing="preparing text to evaluate on",
        needs=("checkpoint",),
        settings=lambda recipe: fingerprint_text(recipe.evaluate),
        code=_TEXT,
        run=_run_evaltext,
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
            code=_SUBJECTS,
            run=_run_validate,
            target=target,
        ),
        Stage(
            name=evaluate_stage(target),
            doing="measuring what the fold costs",
            needs=(*folded, build_stage(target), "evaltext"),
            settings=_describe_evaluation,
            code=(*_SUBJECTS, *_TEXT, "pipeline/evaluate", "runtime/tokenizer.py"),
            run=_run_evaluate,
            target=target,
        ),
        Stage(
            name=report_stage(target),
            doing="writing the report",
            needs=(*folded, build_stage(target), f"validate-{target}"),
            settings=lambda recipe: [recipe.name, recipe.validate_on.thresholds.model_dump(mode="json")],
            code=(*_MODEL, *_REPORT),
            run=_run_report,
            target=target,
        ),
    )


_BUILD_CPU = Stage(
    name="build",
    doing="building the engine",
    needs=(),
    settings=lambda recipe: None,
    code=(*_GRAPH, *_FACTS, "pipeline/build_cpu.py"),
    run=_run_build_cpu,
)
_BUILD_CUDA = replace(
    _BUILD_CPU,
    code=(*_GRAPH, *_FACTS, "pipeline/build_cuda.py"),
    run=_run_build_cuda,
)
_BUILD_TENSORRT = replace(
    _BUILD_CPU,
    doing="compiling kernels and building the plan",
    settings=_tensorrt_settings,
    code=(
        *(*_GRAPH, *_FACTS, *_GPU_KERNELS, "pipeline/tensorrt"),
        *("pipeline/stage.py", "pipeline/write_bundle.py", "runtime/engine/tensorrt/device.py"),
    ),
    run=_run_build_tensorrt,
)
STAGES = (
    *_NEUTRAL,
    *_target_stages("cpu", _BUILD_CPU),
    *_target_stages("cuda", _BUILD_CUDA),
    *_target_stages("tensorrt", _BUILD_TENSORRT),
    *_target_stages("tensorrt-rtx", _BUILD_TENSORRT),
)

"""What each stage does: read the bundle, write its files into `output`. Heavy imports happen inside."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

from kvfold.pipeline.recipe.recipe import HealSection
from kvfold.pipeline.recipe.recipe_sections import Texts
from kvfold.pipeline.show.progress import Progress
from kvfold.pipeline.stages.stage_inputs import HEAL, describe_heal
from kvfold.pipeline.workspace.stage import hash_code
from kvfold.pipeline.workspace.workspace import (
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
from kvfold.runtime.bundle import CONFIG, FOLD_PLAN, QUANTIZATION, SCALES, WEIGHTS, hash_file


def run_checkpoint(workspace: Workspace, output: Path, progress: Progress) -> None:
    """The config, the tokenizer and which checkpoint it was."""
    checkpoint = workspace.checkpoint
    (output / CONFIG).write_text(checkpoint.config.model_dump_json(indent=2) + "\n")
    (output / SOURCE).write_text(json.dumps({"fingerprint": checkpoint.fingerprint}) + "\n")
    checkpoint.tokenizer.save(output)


def run_calibration(workspace: Workspace, output: Path, progress: Progress) -> None:
    """Token sequences to calibrate on."""
    _write_tokens(workspace, workspace.recipe.calibration, output / CALIBRATION_TOKENS)


def run_heldout(workspace: Workspace, output: Path, progress: Progress) -> None:
    """Token sequences to validate on."""
    _write_tokens(workspace, (workspace.recipe.validate_on,), output / HELDOUT_TOKENS)


def run_evaltext(workspace: Workspace, output: Path, progress: Progress) -> None:
    """Token sequences to evaluate on."""
    _write_tokens(workspace, (workspace.recipe.evaluate,), output / EVALUATION_TOKENS)


def run_training(workspace: Workspace, output: Path, progress: Progress) -> None:
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


def run_fold(workspace: Workspace, output: Path, progress: Progress) -> None:
    """The plan with what folding decided, and the folded weights: in closed form, or from an adapter."""
    from safetensors.torch import save_file

    from kvfold.export.fold.fold import FoldedModel, fold_weights
    from kvfold.export.heal.healed_adapter import load_adapter, merge

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


def run_heal(workspace: Workspace, output: Path, progress: Progress) -> None:
    """Without a section to train by, no file: quantize then reads the folded weights."""
    settings = workspace.recipe.heal
    if not isinstance(settings, HealSection):
        return
    from safetensors.torch import save_file

    from kvfold.export.heal.heal import Healing, heal
    from kvfold.export.heal.healed_adapter import load_adapter, merge, save_adapter

    checkpoint, plan, root = workspace.checkpoint, workspace.plan, workspace.root
    tokens, calibration = workspace.tensors(TRAINING_TOKENS)["tokens"], None
    read = [SOURCE, FOLD_PLAN, FOLDED_WEIGHTS, TRAINING_TOKENS]
    if settings.int8_tokens:
        calibration = workspace.tensors(CALIBRATION_TOKENS)["tokens"]
        read.append(CALIBRATION_TOKENS)
    inputs = [hash_file(root / name) for name in read]
    key = json.dumps([describe_heal(workspace.recipe), hash_code(HEAL), inputs], sort_keys=True)
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


def run_quantize(workspace: Workspace, output: Path, progress: Progress) -> None:
    """Weights as the engine holds them, their scales, and the precision of every linear."""
    from safetensors.torch import save_file

    from kvfold.export.quantize.calibrate import calibrate

    tokens = workspace.tensors(CALIBRATION_TOKENS)["tokens"]
    calibrated = calibrate(
        workspace.config, workspace.healed, workspace.plan, tokens, workspace.recipe.quantize
    )
    save_file(dict(calibrated.weights), output / WEIGHTS)
    save_file(dict(calibrated.scales), output / SCALES)
    (output / QUANTIZATION).write_text(calibrated.precision.model_dump_json(indent=2) + "\n")


def run_onnx(workspace: Workspace, output: Path, progress: Progress) -> None:
    """The decoder with its paged caches as a graph."""
    from kvfold.export.graph.onnx_from_decoder import export_onnx
    from kvfold.export.model.decoder import Decoder

    decoder = Decoder.from_weights(workspace.config, workspace.plan, workspace.tensors(WEIGHTS))
    with warnings.catch_warnings():
        # torch warns of its own deprecations and of axes with equal names: nothing a user can act on.
        warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")
        warnings.filterwarnings("ignore", message="# The axis name", category=UserWarning)
        export_onnx(decoder, workspace.tensors(SCALES), output)


def _engine_folder(workspace: Workspace, output: Path) -> Path:
    directory = output / "engine" / workspace.recipe.target
    directory.mkdir(parents=True)
    return directory


def run_build_cpu(workspace: Workspace, output: Path, progress: Progress) -> None:
    """ONNX Runtime's engine with our CPU kernels."""
    from kvfold.pipeline.build.build_cpu import build_cpu

    build_cpu(workspace, _engine_folder(workspace, output))


def run_build_cuda(workspace: Workspace, output: Path, progress: Progress) -> None:
    """ONNX Runtime's engine with its CUDA provider and our kernels."""
    from kvfold.pipeline.build.build_cuda import build_cuda

    build_cuda(workspace, _engine_folder(workspace, output))


def run_build_tensorrt(workspace: Workspace, output: Path, progress: Progress) -> None:
    """TensorRT's engine with our plugins."""
    from kvfold.pipeline.build.tensorrt.build_tensorrt import build_tensorrt

    build_tensorrt(workspace, _engine_folder(workspace, output), progress)


def run_validate(workspace: Workspace, output: Path, progress: Progress) -> None:
    """Original, folded model and engine side by side."""
    from kvfold.pipeline.quality.validate.validate import measure

    measure(workspace, output, progress)


def run_evaluate(workspace: Workspace, output: Path, progress: Progress) -> None:
    """What the fold costs."""
    from kvfold.pipeline.quality.evaluate.evaluate import measure

    measure(workspace, output, progress)


def run_report(workspace: Workspace, output: Path, progress: Progress) -> None:
    """The page that a user reads."""
    from kvfold.pipeline.report.write_report import write_report

    write_report(workspace, output)

"""Stage `quantize`: weights as the engine holds them, their scales, and the precision of every linear."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from kvfold.pipeline.workspace.stage import Job, Stage
from kvfold.pipeline.workspace.workspace import (
    CALIBRATION_TOKENS,
    FOLDED_WEIGHTS,
    HEALED_WEIGHTS,
    INT4_BLOCKS,
    QUANTIZE_FOLDER,
    SMOOTHING,
    SOURCE,
)
from kvfold.runtime.bundle import QUANTIZATION, SCALES, WEIGHTS, hash_file, read_manifest

if TYPE_CHECKING:
    from kvfold.pipeline.workspace.workspace import Workspace


def run(workspace: Workspace, job: Job) -> None:
    """Calibrate the folded, or healed, weights; a calibration under way is kept as a fold is."""
    from kvfold.export.quantize.calibrate import calibrate
    from kvfold.export.weights.layer_journal import LayerJournal
    from kvfold.export.weights.tensor_file import save_tensors

    tokens = workspace.tensors(CALIBRATION_TOKENS)["tokens"]
    settings, journal = workspace.recipe.quantize, LayerJournal(workspace.root / QUANTIZE_FOLDER, job.key)
    calibrated = calibrate(
        workspace.config, workspace.healed, workspace.plan, tokens, settings, job.progress, journal
    )
    (job.output / SMOOTHING).parent.mkdir()
    save_tensors(job.output / SMOOTHING, calibrated.factors)
    save_tensors(job.output / SCALES, calibrated.scales)
    (job.output / QUANTIZATION).write_text(calibrated.precision.model_dump_json(indent=2) + "\n")
    if settings.weights == "int4":
        journal.share_with(job.output / INT4_BLOCKS)
    (job.output / WEIGHTS).write_text(json.dumps(_made_of(workspace, job), indent=2) + "\n")


def _made_of(workspace: Workspace, job: Job) -> dict[str, str]:
    """sha256 of every file that the weights are read from; source.json stands for the checkpoint's."""
    from kvfold.export.weights.tensor_file import layer_files

    manifest = read_manifest(workspace.root)
    assert manifest is not None, "the stages before this one are in it"
    files = {**manifest.stages["fold"].files, **manifest.stages["heal"].files}
    changed = {
        name: files[name].sha256 for name in files if name.startswith((FOLDED_WEIGHTS, HEALED_WEIGHTS))
    }
    source = manifest.stages["checkpoint"].files[SOURCE].sha256
    own = [SMOOTHING, *(INT4_BLOCKS + path.name for path in layer_files(job.output / INT4_BLOCKS))]
    return {SOURCE: source, **changed, **{name: hash_file(job.output / name) for name in own}}


STAGE = Stage(
    name="quantize",
    doing="calibrating",
    needs=("checkpoint", "calibration", "fold", "heal"),
    settings=lambda recipe: recipe.quantize.model_dump(mode="json"),
    files=(WEIGHTS, SMOOTHING, SCALES, QUANTIZATION, INT4_BLOCKS),
    run=run,
    modules=(__name__,),
    scratch=QUANTIZE_FOLDER,
)

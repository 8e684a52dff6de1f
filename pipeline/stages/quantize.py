"""Stage `quantize`: weights as the engine holds them, their scales, and the precision of every linear."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvfold.pipeline.workspace.stage import Job, Stage
from kvfold.pipeline.workspace.workspace import CALIBRATION_TOKENS
from kvfold.runtime.bundle import QUANTIZATION, SCALES, WEIGHTS

if TYPE_CHECKING:
    from kvfold.pipeline.workspace.workspace import Workspace


def run(workspace: Workspace, job: Job) -> None:
    """Calibrate the folded, or healed, weights."""
    from safetensors.torch import save_file

    from kvfold.export.quantize.calibrate import calibrate

    tokens = workspace.tensors(CALIBRATION_TOKENS)["tokens"]
    settings = workspace.recipe.quantize
    calibrated = calibrate(workspace.config, workspace.healed, workspace.plan, tokens, settings, job.progress)
    save_file(dict(calibrated.weights), job.output / WEIGHTS)
    save_file(dict(calibrated.scales), job.output / SCALES)
    (job.output / QUANTIZATION).write_text(calibrated.precision.model_dump_json(indent=2) + "\n")


STAGE = Stage(
    name="quantize",
    doing="calibrating int8",
    needs=("checkpoint", "calibration", "fold", "heal"),
    settings=lambda recipe: recipe.quantize.model_dump(mode="json"),
    files=(WEIGHTS, SCALES, QUANTIZATION),
    run=run,
    modules=(__name__,),
)

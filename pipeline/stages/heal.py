"""Stage `heal`: train what folding changed, where the recipe has a section to train by."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from kvfold.pipeline.stages.training import HELD_OUT
from kvfold.pipeline.workspace.read_checkpoint import read_checkpoint
from kvfold.pipeline.workspace.stage import Job, Stage
from kvfold.pipeline.workspace.workspace import (
    ADAPTER,
    CALIBRATION_TOKENS,
    HEAL_FOLDER,
    HEAL_LOSSES,
    HEALED_WEIGHTS,
    TRAINING_TOKENS,
)
from kvfold.plugins.contract.progress import unheard
from kvfold.runtime.bundle import hash_file

if TYPE_CHECKING:
    from kvfold.pipeline.recipe.recipe import Recipe
    from kvfold.pipeline.workspace.workspace import Workspace


def settings(recipe: Recipe) -> object:
    """The dials that decide the result; texts count by the tokens they gave."""
    section = recipe.training
    if section is None:
        return None
    quantize = recipe.quantize.model_dump(mode="json") if section.int8_tokens else None
    dials = section.model_dump(mode="json", exclude={"text", "held_out", "start", "checkpoint_seconds"})
    return [dials, section.start and hash_file(Path(section.start)), quantize]


def run(workspace: Workspace, job: Job) -> None:
    """Write the adapter, the weights that it changes, and the losses; no file where nothing is to be trained.

    Snapshots of a training under way lie in the bundle, outside its manifest, and are good for the stage's
    own hash alone.
    """
    from kvfold.export.heal.heal import heal
    from kvfold.export.heal.healed_adapter import AdaptedTensors, load_adapter, save_adapter
    from kvfold.export.heal.healing import Healing
    from kvfold.export.heal.training.training_text import TrainingText
    from kvfold.export.weights.layer_journal import write_by_layer

    recipe, section, plan = workspace.recipe, workspace.recipe.training, workspace.plan
    if section is None:
        return
    checkpoint, snapshots = read_checkpoint(workspace), workspace.root / HEAL_FOLDER
    config, base = checkpoint.config, workspace.original
    tokens = dict(workspace.tensors(TRAINING_TOKENS))
    held_out = tokens.pop(HELD_OUT, None)
    text = TrainingText(tuple(tokens.values()))
    calibration = workspace.tensors(CALIBRATION_TOKENS)["tokens"] if section.int8_tokens else None
    judged_by = None if held_out is None else TrainingText((held_out,))
    healing = Healing(config, base, plan, text, section, recipe.quantize, calibration, judged_by)
    earlier = recipe.adapter
    start = load_adapter(earlier, workspace.fingerprint, plan).tensors if earlier else None
    adapter = heal(healing, workspace.folded, snapshots, job.key, job.progress, start)
    save_adapter(job.output / ADAPTER, adapter, workspace.fingerprint, plan)
    write_by_layer(job.output / HEALED_WEIGHTS, AdaptedTensors(config, base, plan, adapter), unheard)
    shutil.copyfile(snapshots / "loss.jsonl", job.output / HEAL_LOSSES)


STAGE = Stage(
    name="heal",
    doing="training what folding changed",
    needs=("checkpoint", "calibration", "fold", "training"),
    settings=settings,
    files=(ADAPTER, HEALED_WEIGHTS, HEAL_LOSSES),
    run=run,
    modules=(__name__,),
)

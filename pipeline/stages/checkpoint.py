"""Stage `checkpoint`: the config, the tokenizer and which checkpoint it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from kvfold.pipeline.workspace.read_checkpoint import read_checkpoint
from kvfold.pipeline.workspace.stage import Job, Stage
from kvfold.pipeline.workspace.workspace import SOURCE
from kvfold.runtime.bundle import CONFIG, TOKENIZER, TOKENIZER_CONFIG

if TYPE_CHECKING:
    from kvfold.pipeline.recipe.recipe import Recipe
    from kvfold.pipeline.workspace.workspace import Workspace


def settings(recipe: Recipe) -> object:
    """The source and, for local files, their sizes and times: hashing gigabytes on every run is no option.

    When these change, this stage hashes the content; later stages go by that alone. Folders in a model's own
    are not read: the bundle itself may lie there, or git's files. A tokenizer.json beside a GGUF file is read
    instead of the file's own vocabulary. The demo model is no path.
    """
    if recipe.model.is_demo:
        return recipe.model.source
    path = Path(recipe.model.source)
    files = sorted(path.iterdir()) if path.is_dir() else [path, path.parent / TOKENIZER]
    stats = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files if p.is_file()]
    return [recipe.model.source, stats]


def run(workspace: Workspace, job: Job) -> None:
    """Write what later stages go by."""
    from kvfold.export.checkpoint.checkpoint import fingerprint_files

    checkpoint = read_checkpoint(workspace)
    fingerprint = fingerprint_files(checkpoint.files, job.progress)
    (job.output / CONFIG).write_text(checkpoint.config.model_dump_json(indent=2) + "\n")
    (job.output / SOURCE).write_text(json.dumps({"fingerprint": fingerprint}) + "\n")
    checkpoint.tokenizer.save(job.output)


STAGE = Stage(
    name="checkpoint",
    doing="reading the checkpoint",
    needs=(),
    settings=settings,
    files=(CONFIG, SOURCE, TOKENIZER, TOKENIZER_CONFIG),
    run=run,
    modules=(__name__,),
)

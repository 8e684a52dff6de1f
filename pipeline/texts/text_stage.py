"""What the stages that prepare texts have in common, and what decides a text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from kvfold.pipeline.recipe.recipe_sections import KEYWORDS
from kvfold.pipeline.workspace.read_checkpoint import read_checkpoint
from kvfold.pipeline.workspace.stage import Job, Stage
from kvfold.pipeline.workspace.workspace import WRITER_FOLDER
from kvfold.plugins.contract.progress import part
from kvfold.runtime.bundle import hash_file

if TYPE_CHECKING:
    from kvfold.pipeline.recipe.recipe import Recipe
    from kvfold.pipeline.recipe.recipe_sections import Texts, TextSection
    from kvfold.pipeline.workspace.workspace import Workspace


def text_stage(name: str, doing: str, file: str, texts: Callable[[Recipe], Texts], module: str) -> Stage:
    """A stage that writes the sequences of a recipe's texts; those of one length are shuffled into one.

    Args:
        name, doing: of the stage.
        file: gets `tokens`, int64 [N, sequence_length], or `tokens.<sequence_length>` for each length where
            there are several; kept because the model may have to write them.
        texts: of a recipe; without any, no file is written.
        module: the stage's own.
    """

    def run(workspace: Workspace, job: Job) -> None:
        from safetensors.torch import save_file

        from kvfold.pipeline.texts.texts import read_texts

        sections = texts(workspace.recipe)
        if not sections:
            return
        checkpoint, writer = read_checkpoint(workspace), workspace.root / WRITER_FOLDER
        by_length = [
            tuple(section for section in sections if section.sequence_length == length)
            for length in sorted({section.sequence_length for section in sections})
        ]
        tensors, total, done = {}, sum(section.tokens for section in sections), 0
        for own in by_length:
            tokens = sum(section.tokens for section in own)
            progress = part(job.progress, done / total, tokens / total)
            name = "tokens" if len(by_length) == 1 else f"tokens.{own[0].sequence_length}"
            tensors[name] = read_texts(own, checkpoint, writer, progress).contiguous()
            done += tokens
        (job.output / file).parent.mkdir()
        save_file(tensors, job.output / file)

    return Stage(
        name=name,
        doing=doing,
        needs=("checkpoint",),
        settings=lambda recipe: [fingerprint_text(text) for text in texts(recipe)],
        files=(file,),
        run=run,
        modules=(module,),
    )


def fingerprint_text(text: TextSection) -> object:
    """Which text is asked for: settings, its file's name and content; what is fetched is pinned."""
    content = None if text.source in KEYWORDS else hash_file(Path(text.source))
    return [text.description, content, text.tokens, text.sequence_length, text.seed]

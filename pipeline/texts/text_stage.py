"""What the stages that prepare texts have in common, and what decides a text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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


def text_stage(
    name: str, doing: str, file: str, texts: Callable[[Recipe], Mapping[str, Texts]], module: str
) -> Stage:
    """A stage that writes the sequences of a recipe's texts.

    Args:
        name, doing: of the stage.
        file: gets a tensor of each name, int64 [N, sequence_length]; kept because the model may have to write
            them.
        texts: of a recipe, by name; several of one name are shuffled into one. Without any, there is no file.
        module: the stage's own.
    """

    def run(workspace: Workspace, job: Job) -> None:
        from safetensors.torch import save_file

        from kvfold.pipeline.texts.texts import read_texts

        named = texts(workspace.recipe)
        if not named:
            return
        checkpoint, writer = read_checkpoint(workspace), workspace.root / WRITER_FOLDER
        sizes = {name: sum(section.tokens for section in sections) for name, sections in named.items()}
        tensors, total, done = {}, sum(sizes.values()), 0
        for name, sections in named.items():
            progress = part(job.progress, done / total, sizes[name] / total)
            tensors[name] = read_texts(sections, checkpoint, writer, progress).contiguous()
            done += sizes[name]
        (job.output / file).parent.mkdir()
        save_file(tensors, job.output / file)

    return Stage(
        name=name,
        doing=doing,
        needs=("checkpoint",),
        settings=lambda recipe: {
            name: [fingerprint_text(text) for text in sections] for name, sections in texts(recipe).items()
        },
        files=(file,),
        run=run,
        modules=(module,),
    )


def fingerprint_text(text: TextSection) -> object:
    """Which text is asked for: settings, its file's name and content; what is fetched is pinned."""
    content = None if text.source in KEYWORDS else hash_file(Path(text.source))
    return [text.description, content, text.tokens, text.sequence_length, text.seed]

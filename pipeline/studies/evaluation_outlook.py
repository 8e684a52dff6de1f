"""What `kvfold eval` is going to do, and about how long that takes here."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from pathlib import Path

from kvfold.pipeline.recipe.recipe import Recipe
from kvfold.pipeline.stages.order import STAGES
from kvfold.pipeline.studies.outlook import Task, bundle_tasks, config_of, seconds_to_read
from kvfold.pipeline.workspace.run_stages import pending_stages
from kvfold.pipeline.workspace.stage import target_stage

SUBJECTS = 3  # original, folded model and engine; the comparison has the original in bfloat16 beside them
TASKS = 2  # of retrieval


def evaluation_tasks(recipe: Recipe, root: Path) -> Iterator[Task]:
    """Build what is not built, then read; nothing where all was measured before."""
    name = target_stage("evaluate", recipe.target)
    pending = {stage.name: last for stage, last in pending_stages(recipe, root, STAGES, name)}
    if name not in pending:
        return
    yield from bundle_tasks(recipe, root, target_stage("build", recipe.target), "evaltext")
    tokens, last = tokens_to_read(recipe, config_of(recipe, root).max_position_embeddings), pending[name]
    seconds = seconds_to_read(config_of(recipe, root), tokens) if last is None else last
    yield Task(f"read {tokens:,} tokens of text and prompts, all models together", seconds)


def tokens_to_read(recipe: Recipe, context: int) -> int:
    """Tokens of all passes over text and codes; passages and short chats are left out."""
    section = recipe.evaluate
    length, found = section.sequence_length, section.retrieval
    sequences = ceil(section.tokens / length)
    compared = min(sequences, ceil(section.kl_tokens / length))
    lengths = [each for each in section.lengths if each <= length] or [length]
    # Of each compared sequence the first window of every length is read with the comparison.
    windows = sum(each * (sequences * (length // each) - compared) for each in lengths)
    prompts = (
        TASKS * len(found.depths) * found.trials * sum(each for each in found.lengths if each <= context)
    )
    return SUBJECTS * (windows + prompts) + (SUBJECTS + 1) * compared * length

"""Evaluate a bundle: the subjects read the recipe's material, and what was measured is written."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from kvfold.pipeline.quality.evaluate.answers import ask
from kvfold.pipeline.quality.evaluate.evaluation import Evaluation, LastWords, evaluation_file
from kvfold.pipeline.quality.evaluate.material import Material, prepare_material
from kvfold.pipeline.quality.evaluate.retrieval import measure_cell, smallest_window
from kvfold.pipeline.quality.evaluate.slips import Speakers, measure_slips
from kvfold.pipeline.quality.likelihood import measure_divergences, measure_perplexity
from kvfold.pipeline.quality.load_subjects import load_bfloat16, load_subjects
from kvfold.pipeline.quality.meter import Meter
from kvfold.pipeline.quality.subjects import Subject
from kvfold.pipeline.texts.writer import MAX_ROWS
from kvfold.pipeline.texts.writer_engine import load_writer_engine, unfolded_plan, writer_key
from kvfold.pipeline.workspace.read_checkpoint import read_checkpoint
from kvfold.pipeline.workspace.workspace import EVALUATION_TOKENS, WRITER_FOLDER, Workspace
from kvfold.plugins.contract.progress import Progress
from kvfold.runtime.bundle import TOKENIZER, TOKENIZER_CONFIG
from kvfold.runtime.engine.slabs import UNITS, slab_pages
from kvfold.runtime.llm.llm import LLM
from kvfold.runtime.memory.budget import kv_cache_bytes
from kvfold.runtime.runtime_config import RuntimeConfig
from kvfold.runtime.text.tokenizer import BundleTokenizer


def write_evaluation(workspace: Workspace, output: Path, progress: Progress) -> None:
    """Write `report/<target>/evaluation.json` into `output`.

    Raises:
        ValidationError: a subject's logits are NaN or infinite.
        CalibrationError: the passages' file cannot be read.
        RecipeError: a retrieval length does not hold its codes, or there are no passages.
    """
    recipe = workspace.recipe
    tokenizer = BundleTokenizer.load(workspace.root / TOKENIZER, workspace.root / TOKENIZER_CONFIG)
    sequences = workspace.tensors(EVALUATION_TOKENS)["tokens"].numpy()
    context = workspace.config.max_position_embeddings
    material = prepare_material(recipe.evaluate, sequences, tokenizer, context)
    subjects = load_subjects(workspace, material.longest, recipe.validate_on.prefill_chunk)
    window = smallest_window(workspace.plan)
    progress(0, "preparing the models")
    speakers = load_speakers(workspace, subjects[0], tokenizer) if material.openers else None
    evaluation = evaluate(
        material, subjects, load_bfloat16(workspace, subjects[0].heads), speakers, window, progress
    )
    path = output / evaluation_file(recipe.target)
    path.parent.mkdir(parents=True)
    path.write_text(evaluation.model_dump_json(indent=1) + "\n")


def evaluate(
    material: Material,
    subjects: Sequence[Subject],
    bfloat16: Subject,
    speakers: Speakers | None,
    window: int | None,
    progress: Callable[[float], None],
) -> Evaluation:
    """Measure everything.

    Args:
        material: what is read.
        subjects: the original first, then whom to compare with it.
        bfloat16: the original's bfloat16 self.
        speakers: who replies to the openers; None where there are none.
        window: tokens that a query sees in every layer, itself included; None is all.
        progress: told of the fraction done.

    Raises:
        ValidationError: a subject's logits are NaN or infinite.
    """
    original, *candidates = subjects
    meter = Meter(material.tokens(len(subjects), len(candidates) + 1), progress)
    spent: dict[str, float] = {}
    with _timed(spent, "comparison"):
        divergences, losses = measure_divergences(material.compared, original, (bfloat16, *candidates), meter)
    with _timed(spent, "perplexity"):
        perplexity = tuple(
            measure_perplexity(material.sequences, length, subjects, meter, losses)
            for length in material.lengths
        )
    with _timed(spent, "retrieval"):
        retrieval = tuple(measure_cell(cell, window, subjects, meter) for cell in material.cells)
    with _timed(spent, "last words"):
        answers = ask(subjects, material.passages, meter)
    with _timed(spent, "slips"):
        slips = measure_slips(material.openers, speakers, meter) if speakers is not None else None
    return Evaluation(
        text=material.text,
        window=window,
        perplexity=perplexity,
        divergences=divergences,
        retrieval=retrieval,
        last_words=LastWords(text=material.passages_text, passages=len(material.passages), subjects=answers),
        slips=slips,
        cpu_seconds=spent,
    )


@contextmanager
def _timed(spent: dict[str, float], part: str) -> Iterator[None]:
    """Note the CPU seconds of a part, over all threads."""
    start = time.process_time()
    yield
    spent[part] = time.process_time() - start


def load_speakers(workspace: Workspace, original: Subject, tokenizer: BundleTokenizer) -> Speakers:
    """The engine as users load it; the original, and once more as the engine that writes texts.

    Raises:
        KvfoldError: an engine cannot be made or loaded.
    """
    checkpoint = read_checkpoint(workspace)
    plan, config = unfolded_plan(checkpoint), RuntimeConfig(max_num_seqs=MAX_ROWS)
    slabs = slab_pages(plan, UNITS["cpu"])
    budget = kv_cache_bytes(plan, slabs, config, workspace.config.max_position_embeddings)
    folder = workspace.root / WRITER_FOLDER / writer_key(checkpoint)
    return Speakers(
        engine=LLM.load(workspace.root, target=workspace.recipe.target),
        judge=original,
        original=LLM(load_writer_engine(checkpoint, plan, folder, budget), tokenizer, config),
    )

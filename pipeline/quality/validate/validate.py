"""Run the subjects over the recipe's text and write what was measured."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from polygraphy.comparator import Comparator, IterationResult
from polygraphy.logger import G_LOGGER

from kvfold.pipeline.machine.engine_gpu import gpu_name
from kvfold.pipeline.quality.load_subjects import load_subjects
from kvfold.pipeline.quality.logit_measures import Distance, measure_distance
from kvfold.pipeline.quality.meter import Meter
from kvfold.pipeline.quality.subjects import (
    FIRST,
    INPUT_IDS,
    LOGITS,
    LOSSES,
    EngineSubject,
    Subject,
    blocks,
)
from kvfold.pipeline.quality.validate.measurements import (
    KL_BIN_EDGES,
    PAIRS,
    Comparison,
    Measurements,
    SubjectResult,
    measurements_file,
)
from kvfold.pipeline.workspace.workspace import HELDOUT_TOKENS, Workspace

if TYPE_CHECKING:
    from polygraphy.comparator.struct import RunResults


def write_measurements(workspace: Workspace, output: Path, progress: Callable[[float], None]) -> None:
    """Write `report/<target>/measurements.json` into `output`.

    Raises:
        ValidationError: a subject's logits are NaN or infinite.
    """
    section = workspace.recipe.validate_on
    windows = workspace.tensors(HELDOUT_TOKENS)["tokens"].numpy()
    subjects = load_subjects(workspace, section.sequence_length, section.prefill_chunk)
    measurements = compare(windows, subjects, section.description, progress)
    target = workspace.recipe.target
    path = output / measurements_file(target)
    path.parent.mkdir(parents=True)
    named = measurements.model_copy(update={"gpu": gpu_name(target)})
    path.write_text(named.model_dump_json(indent=1) + "\n")


def compare(
    windows: np.ndarray, subjects: tuple[Subject, ...], text: str, progress: Callable[[float], None]
) -> Measurements:
    """Compare subjects over tokens int64 [N, L], a block of rows at a time, so that memory stays flat.

    Raises:
        ValidationError: a subject's logits are NaN or infinite.
    """
    distances: dict[tuple[str, str], list[Distance]] = {pair: [] for pair in PAIRS}
    losses: dict[str, list[np.ndarray]] = {subject.name: [] for subject in subjects}

    def collect(reference: IterationResult, candidate: IterationResult) -> OrderedDict[str, bool]:
        distance = measure_distance(reference[LOGITS], candidate[LOGITS])
        distances[reference.runner_name, candidate.runner_name].append(distance)
        return OrderedDict(distribution=True)  # what is close enough, the recipe's thresholds say later

    def remember_losses(stream: Iterator[RunResults]) -> Iterator[RunResults]:
        for results in stream:
            for name, iterations in results:
                losses[name].append(iterations[0][LOSSES])
            yield results
            for _, iterations in results:
                iterations.clear()  # compared: its logits go before the next ones are there

    meter = Meter(windows.size * len(subjects), progress)
    for subject in subjects:
        subject.read_ahead(list(windows), meter)
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL + 1):
        stream = Comparator.run(list(subjects), data_loader=_feeds(windows, subjects, meter), streaming=True)
        names = [subject.name for subject in subjects]
        pairs = [(names.index(reference), names.index(candidate)) for reference, candidate in PAIRS]
        Comparator.compare_accuracy(remember_losses(stream), comparisons=pairs, compare_func=collect)
    return Measurements(
        text=text,
        tokens=windows.size,
        sequence_length=windows.shape[1],
        reused_tokens=sum(s.reused_tokens for s in subjects if isinstance(s, EngineSubject)),
        subjects={s.name: _summarise_subject(s, losses[s.name], windows.size) for s in subjects},
        comparisons=tuple(_summarise_pair(pair, distances[pair]) for pair in PAIRS),
    )


def _feeds(
    windows: np.ndarray, subjects: Sequence[Subject], meter: Meter
) -> Iterator[Mapping[str, np.ndarray]]:
    """A block after the other; when the next one is asked for, all subjects have computed the last."""
    left = sum(subject.left for subject in subjects)
    for window in windows:
        for rows in blocks(0, len(window)):
            yield OrderedDict({INPUT_IDS: window, FIRST: np.array(rows.start)})
            meter(left * (rows.stop - rows.start))


def _summarise_subject(subject: Subject, losses: list[np.ndarray], tokens: int) -> SubjectResult:
    return SubjectResult(
        perplexity=float(np.exp(np.concatenate(losses).mean())), tokens_per_second=tokens / subject.seconds
    )


def _summarise_pair(pair: tuple[str, str], distances: list[Distance]) -> Comparison:
    kl = np.concatenate([distance.kl for distance in distances])
    bins = np.digitize(kl, KL_BIN_EDGES)
    return Comparison(
        reference=pair[0],
        candidate=pair[1],
        kl_mean=float(kl.mean()),
        kl_median=float(np.median(kl)),
        kl_p99=float(np.quantile(kl, 0.99)),
        kl_max=float(kl.max()),
        kl_histogram=tuple(np.bincount(bins, minlength=len(KL_BIN_EDGES) + 1).tolist()),
        top1_agreement=float(np.concatenate([distance.same_top1 for distance in distances]).mean()),
        max_logit_difference=max(distance.max_logit_difference for distance in distances),
    )

"""Perplexity by window length, and KL, agreement and flips against the original, window by window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from kvfold.pipeline.quality.intervals import (
    Float64,
    bootstrap_exp_mean,
    bootstrap_mean,
    bootstrap_quantile,
)
from kvfold.pipeline.quality.likelihood_results import Divergence, Divergences, Perplexity
from kvfold.pipeline.quality.logit_measures import measure_distance, negative_log_likelihood
from kvfold.pipeline.quality.subject_names import ORIGINAL
from kvfold.pipeline.quality.subjects import Subject, Tick, not_finite

# -log p of each token but the first in nat, [L - 1] a sequence, by subject.
Losses = Mapping[str, Sequence[Float64]]


def measure_perplexity(
    sequences: np.ndarray, length: int, subjects: Sequence[Subject], tick: Tick, known: Losses | None = None
) -> Perplexity:
    """Perplexity of each subject over tokens int64 [N, L], in windows of `length`.

    Args:
        sequences: what is read.
        length: tokens of a window, as in `cut_windows`.
        subjects: who reads.
        tick: told of what is computed here.
        known: of the first sequences, which `measure_divergences` has read already: a sequence's first window
            has nothing before it there either.

    Raises:
        ValidationError: a subject's logits are NaN or infinite.
    """
    windows, each = cut_windows(sequences, length), sequences.shape[1] // length
    means: dict[str, list[float]] = {subject.name: [] for subject in subjects}
    for subject in subjects:
        read = dict(zip(range(0, len(windows), each), known[subject.name] if known else (), strict=False))
        subject.read_ahead([window[:-1] for i, window in enumerate(windows) if i not in read], tick)
        for index, window in enumerate(windows):
            if index in read:
                losses = read[index][: length - 1]
            else:
                losses = stream_losses(subject, window)
                tick(subject.left * len(window))
            if not np.isfinite(losses).all():
                raise not_finite(subject.name)
            means[subject.name].append(float(losses.mean()))
    values = {name: np.array(found) for name, found in means.items()}
    return Perplexity(
        length=length,
        windows=len(windows),
        subjects={name: bootstrap_exp_mean(found) for name, found in values.items()},
        ratios={
            name: bootstrap_exp_mean(found - values[ORIGINAL])
            for name, found in values.items()
            if name != ORIGINAL
        },
    )


def measure_divergences(
    windows: np.ndarray, original: Subject, candidates: Sequence[Subject], tick: Tick
) -> tuple[Divergences, Losses]:
    """Compare candidates with the original over tokens int64 [N, L]; only a block of logits is held at once.

    Returns the divergences, and every subject's losses, which the same logits give.

    Raises:
        ValidationError: a subject's logits are NaN or infinite.
    """
    subjects = original, *candidates
    found = {candidate.name: _Collected() for candidate in candidates}
    read: dict[str, list[Float64]] = {subject.name: [] for subject in subjects}
    for subject in subjects:
        subject.read_ahead(list(windows), tick)
    for window in windows:
        targets = np.append(window[1:], -1)  # what follows the last token is unknown: nobody is right
        position = 0
        losses: dict[str, list[Float64]] = {subject.name: [] for subject in subjects}
        for block in zip(*(subject.stream_logits(window) for subject in subjects), strict=True):
            rows = len(block[0])
            for subject, logits in zip(subjects, block, strict=True):
                # One token more than rows, except at the window's end: its last token's own loss is unknown.
                losses[subject.name].append(
                    negative_log_likelihood(logits, window[position : position + rows + 1])
                )
            for candidate, logits in zip(candidates, block[1:], strict=True):
                found[candidate.name].add(block[0], logits, targets[position : position + rows])
            position += rows
            del block, logits  # before the next ones are there
        for name, parts in losses.items():
            read[name].append(np.concatenate(parts))
        tick(window.size * sum(subject.left for subject in subjects))
    if not all(np.isfinite(losses).all() for losses in read[original.name]):
        raise not_finite(original.name)
    for name, collected in found.items():
        if not all(np.isfinite(kl).all() for kl in collected.kl):
            raise not_finite(name)
    divergences = Divergences(
        length=windows.shape[1],
        windows=len(windows),
        tokens=windows.size,
        candidates=tuple(collected.summarise(name, len(windows)) for name, collected in found.items()),
    )
    return divergences, read


class _Collected:
    """Per token of one candidate: KL, whether the likeliest token changed, and who was right."""

    def __init__(self) -> None:
        self.kl: list[Float64] = []
        self.flipped: list[np.ndarray] = []
        self.lost: list[np.ndarray] = []
        self.gained: list[np.ndarray] = []

    def add(self, reference: np.ndarray, logits: np.ndarray, expected: np.ndarray) -> None:
        """One block [r, vocab] of both; `expected` [r] is how the text goes on."""
        distance = measure_distance(reference, logits)
        right, now_right = reference.argmax(axis=-1) == expected, logits.argmax(axis=-1) == expected
        self.kl.append(distance.kl)
        self.flipped.append(~distance.same_top1)
        self.lost.append(right & ~now_right)
        self.gained.append(~right & now_right)

    def summarise(self, name: str, windows: int) -> Divergence:
        """Estimates over `windows` windows of equal length."""
        kl = np.concatenate(self.kl).reshape(windows, -1)
        flipped, lost, gained = (
            np.concatenate(parts).reshape(windows, -1).mean(axis=1)
            for parts in (self.flipped, self.lost, self.gained)
        )
        return Divergence(
            candidate=name,
            kl_mean=bootstrap_mean(kl.mean(axis=1), least=0),
            kl_median=bootstrap_quantile(kl, 0.5),
            kl_p99=bootstrap_quantile(kl, 0.99),
            top1_agreement=bootstrap_mean(1 - flipped, 0, 1),
            flips=bootstrap_mean(flipped, 0, 1),
            flips_lost=bootstrap_mean(lost, 0, 1),
            flips_gained=bootstrap_mean(gained, 0, 1),
        )


def cut_windows(sequences: np.ndarray, length: int) -> np.ndarray:
    """Windows [W, length] of sequences [N, L >= length]; what is left at a sequence's end is dropped."""
    count = sequences.shape[1] // length
    return sequences[:, : count * length].reshape(-1, length)


def stream_losses(subject: Subject, token_ids: np.ndarray, first: int = 0) -> Float64:
    """-log p of each token after position `first`: float64 [L - 1 - first] of tokens int64 [L]."""
    losses, position = [], first
    for logits in subject.stream_logits(token_ids[:-1], first):
        # One token more than rows, whose own loss a block does not know.
        losses.append(negative_log_likelihood(logits, token_ids[position : position + len(logits) + 1]))
        position += len(logits)
    return np.concatenate(losses)

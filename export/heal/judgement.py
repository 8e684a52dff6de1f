"""Judging a model by text that its training does not see."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from kvfold.export.heal.training.passes import ON_A_CPU
from kvfold.export.heal.training.schedule import Clock
from kvfold.export.heal.training.training_text import TrainingText
from kvfold.plugins.contract.progress import Progress


def judge(
    loss: Callable[[Tensor], Tensor], text: TrainingText, clock: Clock, progress: Progress
) -> tuple[float, float]:
    """The mean loss a token over a whole text, without a gradient, and the seconds of doing it again.

    Those are each length's tokens at the rate of its median pass: on a GPU the first one compiles.

    Args:
        loss: mean over the sequences with these numbers, of one length.
        text: at least one sequence.
        clock: what the passes are timed by.
        progress: told after each pass.
    """
    total, again = 0.0, 0.0
    with torch.no_grad():
        for own in text.by_length(torch.arange(len(text.lengths))):
            length, rates = int(text.lengths[own[0]]), []
            for rows in torch.split(own, max(1, ON_A_CPU // length)):
                began = clock.spent
                total += loss(rows).item() * len(rows) * length
                rates.append((clock.spent - began) / len(rows))
                progress(0.0)
            again += median(rates) * len(own)
    return total / text.tokens, again

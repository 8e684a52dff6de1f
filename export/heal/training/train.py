"""The training loop: batches and rates by the number of the update alone, so that it can resume anywhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import ceil, cos, pi

import torch
from torch import Tensor

from kvfold.export.heal.heal_settings import HealSettings
from kvfold.export.heal.training.journal import Journal, Snapshot
from kvfold.export.heal.training.optimizer import Optimizer
from kvfold.plugins.contract.errors import HealingError

TOKENS_PER_PASS = 2_048  # activations of so many tokens exist at a time, or of one longer sequence


@dataclass(frozen=True)
class Step:
    """One of healing's steps.

    Attributes:
        name: in the loss log and in snapshots.
        tokens: how many it trains on; rounded up to whole updates.
        learning_rate: its peak.
        seed: of the order of sequences.
        text: how many sequences there are, and their length.
        parameters: what it changes, by name, float32 leaves.
        loss: of the sequences with these indices; its gradient reaches the parameters.
    """

    name: str
    tokens: int
    learning_rate: float
    seed: int
    text: tuple[int, int]
    parameters: Mapping[str, Tensor]
    loss: Callable[[Tensor], Tensor]


def train(
    step: Step,
    settings: HealSettings,
    journal: Journal,
    snapshot: Snapshot,
    report: Callable[[float, float], None],
) -> None:
    """Change the step's parameters in place by the updates that it has after the snapshot.

    Args:
        step: what is minimised, and over what.
        settings: dials.
        journal: takes losses and snapshots.
        snapshot: of this step; its values are already in the parameters.
        report: told the fraction of the step that is done, and the loss.

    Raises:
        HealingError: a gradient is not finite; the last snapshot is from before it.
    """
    parameters, (count, length) = step.parameters, step.text
    optimizer = Optimizer(parameters)
    if snapshot.optimizer is not None:
        optimizer.restore(snapshot.optimizer)
    size = max(1, settings.batch_tokens // length)
    updates = ceil(step.tokens / (size * length))
    saved = time.monotonic()
    for done, rows in enumerate(batches(count, size, updates, step.seed), start=1):
        if done <= snapshot.updates:
            continue
        rate = step.learning_rate * rate_share(done, updates, settings)
        optimizer.clear()
        loss = backward(step.loss, rows, max(1, TOKENS_PER_PASS // length))
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), settings.clip)
        if not norm.isfinite():
            raise HealingError(
                f"{step.name}, update {done}: the gradient is {float(norm)} at loss {loss}, rate {rate:.1e}; "
                "lower the learning rate or clip"
            )
        optimizer.step(rate)
        journal.log(step.name, done, loss, rate)
        report(done / updates, loss)
        if done == updates or time.monotonic() - saved >= settings.checkpoint_seconds:
            journal.save(step.name, done, {**snapshot.form, **parameters}, optimizer.state(), snapshot.int8)
            saved = time.monotonic()


def backward(loss_of: Callable[[Tensor], Tensor], rows: Tensor, rows_per_pass: int) -> float:
    """Gradient of the mean loss over `rows`, a few at a time; returns that loss."""
    total = 0.0
    for part in torch.split(rows, rows_per_pass):
        loss = loss_of(part) * (len(part) / len(rows))
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no annotation for it
        total += loss.item()
    return total


def batches(count: int, size: int, updates: int, seed: int) -> Iterator[Tensor]:
    """Indices of each update's sequences; whenever the text is used up it starts again in a new order."""
    queue = torch.empty(0, dtype=torch.int64)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(updates):
        while len(queue) < size:
            queue = torch.cat([queue, torch.randperm(count, generator=generator)])
        yield queue[:size]
        queue = queue[size:]


def rate_share(update: int, updates: int, settings: HealSettings) -> float:
    """Share of the peak rate in update 1..updates: linear warm-up, half a cosine down to `final_rate`."""
    warm = min(1.0, update / (settings.warmup_steps + 1))
    fall = 0.5 * (1 + cos(pi * (update - 1) / updates))
    return warm * (settings.final_rate + (1 - settings.final_rate) * fall)

"""The training loop: batches by the number of the update alone, so that it can resume anywhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from kvfold.export.heal.heal_settings import HealSettings
from kvfold.export.heal.training.journal import Journal, Snapshot
from kvfold.export.heal.training.optimizer import Optimizer
from kvfold.export.heal.training.passes import Passes
from kvfold.export.heal.training.schedule import Schedule, rate_share
from kvfold.export.heal.training.training_text import TrainingText
from kvfold.plugins.contract.errors import HealingError


@dataclass(frozen=True)
class Step:
    """One of healing's steps.

    Attributes:
        name: in the loss log and in snapshots.
        schedule: when it ends.
        learning_rate: its peak.
        seed: of the order of sequences.
        text: what it trains on.
        parameters: what it changes, by name, float32 leaves on one device.
        loss: of the sequences with these numbers, of one length; its gradient reaches the parameters.
    """

    name: str
    schedule: Schedule
    learning_rate: float
    seed: int
    text: TrainingText
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
        HealingError: a gradient is not finite, or memory does not suffice for one sequence; the last snapshot
            is from before it.
    """
    parameters, schedule = step.parameters, step.schedule
    optimizer = Optimizer(parameters)
    if snapshot.optimizer is not None:
        optimizer.restore(snapshot.optimizer)
    passes = Passes.on(next(iter(parameters.values())).device)
    saved = time.monotonic()
    for update, rows in enumerate(batches(step.text.lengths, settings.batch_tokens, step.seed), start=1):
        if update <= snapshot.updates:
            continue
        if schedule.is_over(update):
            return
        rate = step.learning_rate * rate_share(update, schedule.done(update), settings)
        loss = backward(step, rows, passes, optimizer)
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), settings.clip)
        if not norm.isfinite():
            raise HealingError(
                f"{step.name}, update {update}: the gradient is {float(norm)} at loss {loss}, rate "
                f"{rate:.1e}; lower the learning rate or clip"
            )
        optimizer.step(rate)
        journal.log(step.name, update, loss, rate)
        report(schedule.done(update + 1), loss)
        if time.monotonic() - saved >= settings.checkpoint_seconds:
            form = {**snapshot.form, **parameters}
            journal.save(replace(snapshot, updates=update, form=form, optimizer=optimizer.state()))
            saved = time.monotonic()


def backward(step: Step, rows: Tensor, passes: Passes, optimizer: Optimizer) -> float:
    """Gradient of the mean loss over an update's sequences, a pass after the other; returns that loss.

    Where a GPU's memory does not suffice, it begins again with passes of half the size.
    """
    while True:
        optimizer.clear()
        try:
            return _accumulate(step, rows, passes)
        except torch.OutOfMemoryError:
            pass  # outside of this block nothing holds what the pass allocated
        passes.halve(int(step.text.lengths[rows].max()))
        torch.cuda.empty_cache()


def _accumulate(step: Step, rows: Tensor, passes: Passes) -> float:
    lengths = step.text.lengths
    whole, total = int(lengths[rows].sum()), 0.0
    for own in step.text.by_length(rows):
        length = int(lengths[own[0]])
        while len(own):
            part, own = own[: passes.rows(length)], own[passes.rows(length) :]
            total += passes.run(len(part) * length, partial(_one_pass, step, part, whole))
    return total


def _one_pass(step: Step, rows: Tensor, whole: int) -> float:
    """The share of an update of `whole` tokens that sequences of one length have in its loss."""
    share = int(step.text.lengths[rows].sum()) / whole
    loss = step.loss(rows) * share
    loss.backward()  # type: ignore[no-untyped-call]  # torch has no annotation for it
    return loss.item()


def batches(lengths: Tensor, batch_tokens: int, seed: int) -> Iterator[Tensor]:
    """Numbers of each update's sequences, of at most `batch_tokens` tokens, or one sequence; without an end.

    Whenever the text is used up it starts again in a new order.
    """
    queue = torch.empty(0, dtype=torch.int64)
    generator = torch.Generator().manual_seed(seed)
    while True:
        while not len(queue) or lengths[queue].sum() < batch_tokens:
            queue = torch.cat([queue, torch.randperm(len(lengths), generator=generator)])
        count = max(1, int((lengths[queue].cumsum(0) <= batch_tokens).sum()))
        yield queue[:count]
        queue = queue[count:]


def count_updates(lengths: Tensor, batch_tokens: int, seed: int, tokens: int) -> int:
    """How many updates see so many tokens."""
    seen = 0
    for update, rows in enumerate(batches(lengths, batch_tokens, seed), start=1):
        seen += int(lengths[rows].sum())
        if seen >= tokens:
            return update
    raise AssertionError("batches have no end")

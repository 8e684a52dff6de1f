"""Heal a folded model by training: layer by layer, end to end, then in int8; what it learns is an adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from torch import Tensor

from kvfold.export.heal.healing import (
    AFTER,
    BEFORE,
    CALIBRATING,
    COST,
    DONE,
    END_TO_END,
    FITTING,
    INT8,
    LAYERWISE,
    STEPS,
    TRAINED,
    Healing,
    HealProgress,
)
from kvfold.export.heal.judgement import judge
from kvfold.export.heal.objective.losses import EndToEndLoss, LayerwiseLoss
from kvfold.export.heal.starting_point import adapter_form
from kvfold.export.heal.student.int8_deployment import Int8Deployment
from kvfold.export.heal.student.low_rank import FACTORS
from kvfold.export.heal.student.student import TrainedModel
from kvfold.export.heal.training.journal import Journal, Snapshot
from kvfold.export.heal.training.schedule import ByClock, ByUpdates, Schedule
from kvfold.export.heal.training.train import Step, count_updates, train
from kvfold.export.heal.training.training_text import TrainingText
from kvfold.plugins.contract.errors import HealingError
from kvfold.plugins.contract.progress import Progress


def heal(
    healing: Healing,
    folded: Mapping[str, Tensor],
    folder: Path,
    key: str,
    report: Progress,
    start: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The adapter that heals `folded`, float16; `merge` makes weights of it and the base.

    The same arguments give the same bits on the same CPU with the same number of threads, also when killed
    and called again: `folder` keeps snapshots and the loss log. A training by the clock goes on with the time
    that it has left.

    Args:
        healing: what is healed.
        folded: weights that `fold_weights` made.
        folder: made where it is missing; emptied when it is another key's.
        key: stands for everything that decides the result.
        report: told the fraction 0..1 done, and the loss in words.
        start: tensors of an earlier training's adapter, of which `folded` was merged; training goes on from
            them as they are, rank included. None fits the adapter to `folded`.

    Raises:
        PlanError: the plan folds nothing.
        HealingError: training diverged; the clock leaves no time to train, or no text can be held out for it;
            a GPU's memory does not suffice for one sequence.
    """
    form = _Training(healing, folded, start, Journal(folder, key), report).run()
    return {name: tensor.half() for name, tensor in form.items()}


class _Training:
    """All steps, each from the snapshot that the one before it left."""

    def __init__(
        self,
        healing: Healing,
        folded: Mapping[str, Tensor],
        start: Mapping[str, Tensor] | None,
        journal: Journal,
        report: Progress,
    ) -> None:
        self._healing, self._folded, self._start, self._journal = healing, folded, start, journal
        self._settings, self._progress = healing.settings, HealProgress(healing, journal, report)
        self._text, self._held_out = healing.text, healing.held_out or TrainingText(())
        if healing.settings.seconds is not None and healing.held_out is None:
            self._text, self._held_out = healing.text.hold_out()

    def run(self) -> Mapping[str, Tensor]:
        """The healed model as its adapter's tensors."""
        run = {
            BEFORE: self._measure_before,
            LAYERWISE: self._layerwise,
            END_TO_END: self._end_to_end,
            INT8: self._int8,
            AFTER: self._keep_the_better,
        }
        journal = self._journal
        snapshot = journal.load() or journal.begin(BEFORE, self._first_form())
        journal.rewind(snapshot, STEPS)
        while snapshot.step != DONE:
            after = STEPS[STEPS.index(snapshot.step) + 1]
            snapshot = journal.save(run[snapshot.step](snapshot).then(after))
        return snapshot.form

    @cached_property
    def _teacher(self) -> TrainedModel:
        return self._healing.teacher()

    def _first_form(self) -> dict[str, Tensor]:
        healing, start = self._healing, self._start
        if start is None:
            progress = self._progress.part(FITTING, "fitting the adapter to the fold")
            text, rank = healing.text.largest, healing.settings.rank
            return adapter_form(
                healing.config, healing.base, self._folded, healing.plan, text, rank, progress
            )
        return {name: tensor if name.endswith(FACTORS) else tensor.float() for name, tensor in start.items()}

    def _measure_before(self, snapshot: Snapshot) -> Snapshot:
        """What a training by the clock begins with, and when its steps are to train."""
        if self._settings.seconds is None:
            return snapshot
        if not self._held_out.tokens:
            raise HealingError(
                "heal.seconds holds some of heal.text out to judge by, yet it has one sequence; ask for more "
                "tokens"
            )
        self._journal.keep_start(snapshot.form)
        began = self._journal.clock.spent
        int8 = self._deploy(snapshot.form, "judging by held-out text")
        calibration = self._journal.clock.spent - began
        loss, judgement = self._judge(snapshot.form, int8)
        self._journal.log(BEFORE, 1, loss)
        return replace(snapshot, spans=self._spans(calibration if int8 else 0.0, judgement))

    def _spans(self, calibration: float, judgement: float) -> dict[str, tuple[float, float]]:
        """When each step trains, where calibrating and judging take so long: it ends with both of them.

        Step C has its own calibration in front of it.
        """
        seconds, end = self._settings.seconds, self._journal.clock.spent
        assert seconds is not None, "this training has no end on the clock"
        aside = 2 * calibration + judgement
        left = seconds - aside - end
        if left <= 0:
            raise HealingError(
                f"heal.seconds is {seconds:g}, yet what comes before and after training takes "
                f"{end + aside:.0f}; raise it"
            )
        shares = {step: COST[step] * self._healing.tokens(step) for step in TRAINED}
        spans = {}
        for step, share in shares.items():
            start = end + (calibration if step == INT8 else 0.0)
            spans[step] = start, (end := start + left * share / sum(shares.values()))
        return spans

    def _layerwise(self, snapshot: Snapshot) -> Snapshot:
        """Step A."""
        if not self._settings.layerwise_tokens:
            return snapshot
        student = self._healing.student(snapshot.form)
        loss = LayerwiseLoss(self._teacher, student, self._text)
        return self._train(snapshot, self._settings.layerwise_learning_rate, student, loss)

    def _end_to_end(self, snapshot: Snapshot) -> Snapshot:
        """Step B."""
        if not self._settings.tokens:
            return snapshot
        student = self._healing.student(snapshot.form)
        loss = self._end_to_end_loss(student, self._text, self._settings.scored)
        return self._train(snapshot, self._settings.learning_rate, student, loss)

    def _int8(self, snapshot: Snapshot) -> Snapshot:
        """Step C: step B on a student that rounds as it would have been deployed when the step began."""
        if not self._settings.int8_tokens:
            return snapshot
        if not snapshot.int8:
            int8 = self._deploy(snapshot.form, "calibrating int8")
            snapshot = self._journal.save(replace(snapshot, int8=vars(int8)))
        student = self._healing.student(snapshot.form, Int8Deployment(**snapshot.int8 or {}))
        loss = self._end_to_end_loss(student, self._text, self._settings.scored)
        return self._train(snapshot, self._settings.int8_learning_rate, student, loss)

    def _keep_the_better(self, snapshot: Snapshot) -> Snapshot:
        """What a training by the clock ends with: what it learned, or began with where that is better."""
        if self._settings.seconds is None:
            return snapshot
        after, _ = self._judge(snapshot.form, self._deploy(snapshot.form, "judging by held-out text"))
        self._journal.log(AFTER, 1, after)
        if after < self._journal.last_loss(BEFORE):
            return snapshot
        return replace(snapshot, form=self._journal.start() or self._first_form())

    def _deploy(self, form: Mapping[str, Tensor], doing: str) -> Int8Deployment | None:
        """How a model is deployed that step C trains; None without that step, which judges in float."""
        if not self._settings.int8_tokens:
            return None
        return self._healing.deploy(form, self._progress.part(CALIBRATING, doing))

    def _judge(self, form: Mapping[str, Tensor], int8: Int8Deployment | None) -> tuple[float, float]:
        """Mean KL(original || model) on the text held out, in nat a token, and how long another takes."""
        progress, clock = self._progress.part(CALIBRATING, "judging by held-out text"), self._journal.clock
        _ = self._teacher  # opened once, which a later judgement does not pay for
        began = clock.spent
        loss = self._end_to_end_loss(self._healing.student(form, int8), self._held_out, scored=1.0)
        prepared = clock.spent - began
        mean, passes = judge(loss, self._held_out, clock, progress)
        return mean, prepared + passes

    def _end_to_end_loss(self, student: TrainedModel, text: TrainingText, scored: float) -> EndToEndLoss:
        return EndToEndLoss(self._teacher, student, self._healing.head, text, scored, self._settings.seed)

    def _train(
        self,
        snapshot: Snapshot,
        rate: float,
        student: TrainedModel,
        loss: LayerwiseLoss | EndToEndLoss,
    ) -> Snapshot:
        name, seed = snapshot.step, self._settings.seed + TRAINED.index(snapshot.step)
        schedule = self._schedule(snapshot, seed)
        step = Step(name, schedule, rate, seed, self._text, student.parameters, loss)
        train(step, self._settings, self._journal, snapshot, self._progress.of(name))
        return replace(snapshot, form={**snapshot.form, **student.parameters})

    def _schedule(self, snapshot: Snapshot, seed: int) -> Schedule:
        if snapshot.spans is not None:
            return ByClock(self._journal.clock, *snapshot.spans[snapshot.step])
        lengths, batch = self._text.lengths, self._settings.batch_tokens
        return ByUpdates(count_updates(lengths, batch, seed, self._healing.tokens(snapshot.step)))

"""Heal a folded model by training: layer by layer, end to end, then in int8; what it learns is an adapter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from kvfold.export.heal.heal_settings import HealSettings
from kvfold.export.heal.healed_adapter import merge
from kvfold.export.heal.objective.losses import EndToEndLoss, LayerwiseLoss
from kvfold.export.heal.objective.teacher_cache import TeacherCache, scored_positions
from kvfold.export.heal.starting_point import METRIC_TOKENS, adapter_form
from kvfold.export.heal.student.int8_deployment import Int8Deployment
from kvfold.export.heal.student.low_rank import FACTORS
from kvfold.export.heal.student.student import TrainedModel
from kvfold.export.heal.training.journal import Journal, Snapshot
from kvfold.export.heal.training.train import TOKENS_PER_PASS, Step, train
from kvfold.export.model.model_config import ModelConfig
from kvfold.export.quantize.calibrate import calibrate
from kvfold.export.quantize.quantize_settings import QuantizeSettings
from kvfold.export.weights.changed_weights import ChangedWeights, dropped_names
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.plugins.contract.plan_presets import Preset, build_plan
from kvfold.plugins.contract.progress import Progress, unheard

LAYERWISE, END_TO_END, INT8, DONE = STEPS = ("layerwise", "end_to_end", "int8", "done")
FITTING, TEACHER, CALIBRATING = "fitting", "teacher", "calibrating"
# Share of the time that a token takes in each part, in order, for the progress display (measured on SmolLM2;
# fitting and calibrating count as what they have in common with the teacher, a pass without gradients).
FORWARD = 0.27
COST = {
    FITTING: FORWARD,
    LAYERWISE: 0.75,
    TEACHER: FORWARD,
    END_TO_END: 1.0,
    CALIBRATING: FORWARD,
    INT8: 2.0,
}


@dataclass(frozen=True)
class Healing:
    """What is healed, on what, and how.

    Attributes:
        config: the unfolded model.
        base: its weights.
        plan: the fold, with the RoPE slots that it chose.
        tokens: training text, int64 [N, L].
        settings: dials.
        quantize: how the healed model is to be quantised; only step C asks.
        calibration: text that it is then calibrated on, int64 [N, L]; None where step C is skipped.
    """

    config: ModelConfig
    base: Mapping[str, Tensor]
    plan: FoldPlan
    tokens: Tensor
    settings: HealSettings
    quantize: QuantizeSettings = field(default_factory=QuantizeSettings)
    calibration: Tensor | None = None

    def teacher(self) -> TrainedModel:
        """The original."""
        identity = build_plan(Preset(preset="identity"), self.config.attention_shape)
        return TrainedModel(self.config, identity, self.base)

    def student(self, form: Mapping[str, Tensor], int8: Int8Deployment | None = None) -> TrainedModel:
        """The folded model, as `form` has it."""
        kept = ChangedWeights(self.base, {}, dropped_names(self.plan))
        return TrainedModel(self.config, self.plan, kept, form, int8)

    @property
    def text_shape(self) -> tuple[int, int]:
        """How many sequences there are, and their length."""
        count, length = self.tokens.shape
        return count, length

    @property
    def head(self) -> Tensor:
        """The original's lm_head weight [vocab, hidden_size]."""
        return self.base["model.embed_tokens.weight" if self.config.tie_word_embeddings else "lm_head.weight"]

    def deploy(self, form: Mapping[str, Tensor], report: Progress = unheard) -> Int8Deployment:
        """How the model that `form` makes would be deployed."""
        assert self.calibration is not None, "step C is given what to calibrate on"
        weights = merge(self.config, self.base, self.plan, {n: tensor.half() for n, tensor in form.items()})
        calibrated = calibrate(self.config, weights, self.plan, self.calibration, self.quantize, report)
        return Int8Deployment.of(self.config, self.plan, calibrated)


def heal(
    healing: Healing,
    folded: Mapping[str, Tensor],
    folder: Path,
    key: str,
    report: Progress,
    start: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The adapter that heals `folded`, float16; `merge` makes weights of it and the base.

    The same arguments give the same bits on the same machine with the same number of threads, also when
    killed and called again: `folder` keeps snapshots, the loss log and the teacher's cache.

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
        HealingError: training diverged.
    """
    journal, progress = Journal(folder, key), _Progress(healing, report)
    snapshot = journal.load()
    if snapshot is None:
        fitting = progress.part(FITTING, "fitting the adapter to the fold")
        snapshot = journal.begin(LAYERWISE, _first_form(healing, folded, start, fitting))
    journal.rewind(snapshot, STEPS)
    if snapshot.step == LAYERWISE:
        snapshot = _layerwise(healing, journal, snapshot, progress)
    if snapshot.step == END_TO_END:
        snapshot = _end_to_end(healing, journal, snapshot, progress)
    if snapshot.step == INT8:
        snapshot = _int8(healing, journal, snapshot, progress)
    TeacherCache.remove(folder)
    return {name: tensor.half() for name, tensor in snapshot.form.items()}


def _first_form(
    healing: Healing,
    folded: Mapping[str, Tensor],
    start: Mapping[str, Tensor] | None,
    progress: Progress,
) -> dict[str, Tensor]:
    if start is None:
        text, rank = healing.tokens, healing.settings.rank
        return adapter_form(healing.config, healing.base, folded, healing.plan, text, rank, progress)
    return {name: tensor if name.endswith(FACTORS) else tensor.float() for name, tensor in start.items()}


def _layerwise(healing: Healing, journal: Journal, snapshot: Snapshot, progress: _Progress) -> Snapshot:
    """Step A; returns the snapshot that step B starts from."""
    student, settings = healing.student(snapshot.form), healing.settings
    loss = LayerwiseLoss(healing.teacher(), student, healing.tokens)
    dials = settings.layerwise_tokens, settings.layerwise_learning_rate, settings.seed
    step = Step(LAYERWISE, *dials, healing.text_shape, student.parameters, loss)
    train(step, settings, journal, snapshot, progress.of(step))
    return journal.save(END_TO_END, 0, {**snapshot.form, **student.parameters}, None)


def _end_to_end(healing: Healing, journal: Journal, snapshot: Snapshot, progress: _Progress) -> Snapshot:
    """Step B, after the teacher has answered; returns the snapshot that step C starts from."""
    settings = healing.settings
    if not settings.tokens:
        return journal.save(INT8, 0, snapshot.form, None)
    cache = _answers(healing, journal, progress)
    student = healing.student(snapshot.form)
    loss = EndToEndLoss(student, cache, healing.head, healing.tokens)
    dials = settings.tokens, settings.learning_rate, settings.seed + 1
    step = Step(END_TO_END, *dials, healing.text_shape, student.parameters, loss)
    train(step, settings, journal, snapshot, progress.of(step))
    return journal.save(INT8, 0, {**snapshot.form, **student.parameters}, None)


def _int8(healing: Healing, journal: Journal, snapshot: Snapshot, progress: _Progress) -> Snapshot:
    """Step C: step B on a student that rounds as it would have been deployed when the step began."""
    settings = healing.settings
    if not settings.int8_tokens:
        return journal.save(DONE, 0, snapshot.form, None)
    cache = _answers(healing, journal, progress)
    if snapshot.int8:
        int8 = Int8Deployment(**snapshot.int8)
    else:
        int8 = healing.deploy(snapshot.form, progress.part(CALIBRATING, "calibrating int8"))
        snapshot = journal.save(INT8, 0, snapshot.form, None, vars(int8))
    student = healing.student(snapshot.form, int8)
    loss = EndToEndLoss(student, cache, healing.head, healing.tokens)
    dials = settings.int8_tokens, settings.int8_learning_rate, settings.seed + 2
    step = Step(INT8, *dials, healing.text_shape, student.parameters, loss)
    train(step, settings, journal, snapshot, progress.of(step))
    return journal.save(DONE, 0, {**snapshot.form, **student.parameters}, None)


def _answers(healing: Healing, journal: Journal, progress: _Progress) -> TeacherCache:
    """The original's answers at the scored positions; it runs where they are not all there yet."""
    settings, (count, length) = healing.settings, healing.text_shape
    positions = scored_positions(count, length, settings.scored, settings.seed)
    cache = TeacherCache(journal.folder, positions, healing.config.hidden_size)
    if cache.missing:
        cache.fill(
            healing.teacher(),
            healing.tokens,
            max(1, TOKENS_PER_PASS // length),
            lambda fraction: progress(TEACHER, fraction, "the original answers"),
        )
    return cache


class _Progress:
    """One fraction for all parts, by what their tokens cost."""

    def __init__(self, healing: Healing, report: Progress) -> None:
        settings, text = healing.settings, healing.tokens.numel()
        tokens = {
            FITTING: min(text, METRIC_TOKENS),
            LAYERWISE: settings.layerwise_tokens,
            TEACHER: text if settings.tokens or settings.int8_tokens else 0,
            END_TO_END: settings.tokens,
            CALIBRATING: 0 if healing.calibration is None else healing.calibration.numel(),
            INT8: settings.int8_tokens,
        }
        self._cost = {part: COST[part] * tokens[part] for part in COST}
        self._report = report

    def __call__(self, part: str, fraction: float, note: str) -> None:
        parts = list(COST)
        before = sum(self._cost[earlier] for earlier in parts[: parts.index(part)])
        self._report((before + fraction * self._cost[part]) / sum(self._cost.values()), note)

    def part(self, part: str, doing: str) -> Progress:
        """Takes how far a part is that is no training."""
        return lambda fraction, note="": self(part, fraction, f"{doing} {note}".rstrip())

    def of(self, step: Step) -> Callable[[float, float], None]:
        """Takes the fraction done of one step, and its loss."""
        return lambda fraction, loss: self(step.name, fraction, f"{step.name} loss {loss:.4f}")

"""What is healed, in which steps, and how far that is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from kvfold.export.heal.heal_settings import HealSettings
from kvfold.export.heal.healed_adapter import merge
from kvfold.export.heal.starting_point import METRIC_TOKENS
from kvfold.export.heal.student.int8_deployment import Int8Deployment
from kvfold.export.heal.student.student import TrainedModel
from kvfold.export.heal.training.journal import Journal
from kvfold.export.heal.training.training_text import TrainingText
from kvfold.export.model.model_config import ModelConfig
from kvfold.export.quantize.calibrate import calibrate
from kvfold.export.quantize.quantize_settings import QuantizeSettings
from kvfold.export.weights.changed_weights import ChangedWeights, dropped_names
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.plugins.contract.plan_presets import Preset, build_plan
from kvfold.plugins.contract.progress import Progress, unheard

BEFORE, LAYERWISE, END_TO_END, INT8, AFTER, DONE = STEPS = (
    *("before", "layerwise", "end_to_end", "int8", "after", "done"),
)
TRAINED = (LAYERWISE, END_TO_END, INT8)
FITTING, CALIBRATING = "fitting", "calibrating"
# Share of the time that a token takes in each part, in order, for the progress display and for how a training
# by the clock shares its time (measured on SmolLM2; fitting and calibrating count as passes without
# gradient).
FORWARD = 0.27
COST = {
    FITTING: FORWARD,
    LAYERWISE: 0.75,
    END_TO_END: 1.0 + FORWARD,
    CALIBRATING: FORWARD,
    INT8: 2.0 + FORWARD,
}


@dataclass(frozen=True)
class Healing:
    """What is healed, on what, and how.

    Attributes:
        config: the unfolded model.
        base: its weights.
        plan: the fold, with the RoPE slots that it chose.
        text: what it is trained on.
        settings: dials.
        quantize: how the healed model is to be quantised; only step C asks.
        calibration: text that it is then calibrated on, int64 [N, L]; None where step C is skipped.
        held_out: what a training by the clock is judged by; None takes the end of the text for it.
    """

    config: ModelConfig
    base: Mapping[str, Tensor]
    plan: FoldPlan
    text: TrainingText
    settings: HealSettings
    quantize: QuantizeSettings = field(default_factory=QuantizeSettings)
    calibration: Tensor | None = None
    held_out: TrainingText | None = None

    def teacher(self) -> TrainedModel:
        """The original."""
        identity = build_plan(Preset(preset="identity"), self.config.attention_shape)
        return TrainedModel(self.config, identity, self.base)

    def student(self, form: Mapping[str, Tensor], int8: Int8Deployment | None = None) -> TrainedModel:
        """The folded model, as `form` has it."""
        kept = ChangedWeights(self.base, {}, dropped_names(self.plan))
        return TrainedModel(self.config, self.plan, kept, form, int8)

    def tokens(self, step: str) -> int:
        """How many a step is to train on."""
        settings = self.settings
        return {
            LAYERWISE: settings.layerwise_tokens,
            END_TO_END: settings.tokens,
            INT8: settings.int8_tokens,
        }[step]

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


class HealProgress:
    """One fraction for all parts: by the clock where it has an end, else by what their tokens cost."""

    def __init__(self, healing: Healing, journal: Journal, report: Progress) -> None:
        calibration = 0 if healing.calibration is None else healing.calibration.numel()
        tokens = {FITTING: min(healing.text.tokens, METRIC_TOKENS), CALIBRATING: calibration}
        tokens |= {step: healing.tokens(step) for step in TRAINED}
        self._cost = {part: COST[part] * tokens[part] for part in COST}
        self._seconds, self._journal, self._report = healing.settings.seconds, journal, report

    def __call__(self, part: str, fraction: float, note: str) -> None:
        """A part is so far, and has this to say."""
        if self._seconds is not None:
            self._report(min(1.0, self._journal.clock.spent / self._seconds), note)
            return
        parts = list(COST)
        before = sum(self._cost[earlier] for earlier in parts[: parts.index(part)])
        self._report((before + fraction * self._cost[part]) / sum(self._cost.values()), note)

    def part(self, part: str, doing: str) -> Progress:
        """Takes how far a part is that is no training."""
        return lambda fraction, note="": self(part, fraction, f"{doing} {note}".rstrip())

    def of(self, step: str) -> Callable[[float, float], None]:
        """Takes the fraction done of one step, and its loss."""
        return lambda fraction, loss: self(step, fraction, f"{step} loss {loss:.4f}")

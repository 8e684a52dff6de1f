"""What calibration decides as layers come in: smoothing of each group, precision of each linear, scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from kvfold.export.model.decoder import Block
from kvfold.export.quantize.fake_int8_linear import linear_weight
from kvfold.export.quantize.int4.int4_trials import Int4Trial, int4_trial
from kvfold.export.quantize.int4.round_weight import is_exact, round_weight
from kvfold.export.quantize.int8_trials import (
    Int8Trial,
    absmax,
    compared_rows,
    int8_trials,
    plain_and_finer_trial,
)
from kvfold.export.quantize.observe import LinearInput, Observations, cache_scales, static_scale
from kvfold.export.quantize.precision import LinearPrecision
from kvfold.export.quantize.quantize_settings import QuantizeSettings
from kvfold.export.quantize.smooth import SmoothingGroup, scale_candidates
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.plugins.contract.progress import Progress, unheard

HEAD = "lm_head"


@dataclass
class Waiting:
    """A linear that was observed and is not measured yet.

    Attributes:
        seen: its input, as the model computes it before any smoothing.
        largest: of its weight's columns, [in].
        trial: in int8 under the scale that its input was given; None before that.
        rows: what smoothing of its outputs multiplies the last of them with, [<= out]; None for nothing.
        int4: in 4 bits, once tried; None where it costs too much.
        int4_error: of 4 bits with int8 activations, once tried.
    """

    seen: LinearInput
    largest: Tensor
    trial: Int8Trial | None = None
    rows: Tensor | None = None
    int4: Int4Trial | None = None
    int4_error: float | None = None

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Self:
        """Inverse of `_plain`."""
        trial = fields["trial"] and Int8Trial(**fields["trial"])
        int4 = fields["int4"] and Int4Trial.of(fields["int4"])
        rest = fields["rows"], int4, fields["int4_error"]
        return cls(LinearInput(**fields["seen"]), fields["largest"], trial, *rest)

    def output_factors(self) -> Tensor | None:
        """What each output is multiplied with, [out]."""
        trial = self.trial if self.int4 is None else self.int4.plain
        if self.rows is None or trial is None:
            return None
        factors = torch.ones(len(trial.power))
        factors[len(factors) - len(self.rows) :] = self.rows
        return factors


class LayerCalibration:
    """Decisions so far.

    Attributes:
        smoothing: `Calibrated.smoothing`.
        blocks: of linears in 4 bits, where they are not the checkpoint's own, as `Blocks.tensors` has them.
    """

    def __init__(
        self, groups: Sequence[SmoothingGroup], weights: Mapping[str, Tensor], settings: QuantizeSettings
    ) -> None:
        """`groups` are the model's, none where nothing is to be smoothed; `weights` are all that it has."""
        self.smoothing: dict[str, Tensor] = {}
        self.blocks: dict[str, Tensor] = {}
        self._order: list[str] = []
        self._measured: dict[str, LinearPrecision] = {}
        self._weights, self._settings = weights, settings
        self._open = dict(enumerate(groups))
        self._waiting: dict[str, Waiting] = {}
        self._matrices: dict[str, Tensor] = {}  # of the layer at work
        self._largest_inputs: dict[str, Tensor] = {}
        self._key_range: dict[int, Tensor] = {}
        self._value_range: dict[int, Tensor] = {}

    @property
    def linears(self) -> dict[str, LinearPrecision]:
        """Precision of each measured linear, in the decoder's order; some waited for a later layer."""
        return {name: self._measured[name] for name in self._order if name in self._measured}

    def needs_moment(self, weight: Tensor) -> bool:
        """Whether rounding this weight asks for its input's moment."""
        return self._settings.weights == "int4" and not is_exact(weight)

    def take_blocks(self) -> dict[str, Tensor]:
        """`blocks` since the last call; they are kept here no longer."""
        blocks, self.blocks = self.blocks, {}
        return blocks

    def take(self, seen: Observations, block: Block, progress: Progress = unheard) -> None:
        """Decide what a layer's observations, and earlier ones that waited for it, allow to decide."""
        self._key_range |= seen.key_range
        self._value_range |= seen.value_range
        prefix = f"model.layers.{block.self_attn.layer}."
        modules = {prefix + name: module for name, module in block.named_modules()}
        matrices = {name: module.weight for name, module in modules.items() if isinstance(module, nn.Linear)}
        self._decide(seen.inputs, matrices, progress)

    def take_head(self, seen: LinearInput, weight: Tensor) -> None:
        """Decide on the head [vocab, hidden_size], which comes last."""
        self._decide({HEAD: seen}, {HEAD: weight}, unheard)
        assert not self._waiting and not self._open, "every reader of every group was observed"

    def scales(self, plan: FoldPlan) -> dict[str, Tensor]:
        """Scales by their names in the bundle, once all is decided; a channel that never moved gets 1."""
        scales = cache_scales(plan, self._key_range, self._value_range)
        for name, linear in self.linears.items():
            if linear.precision == "int8":
                scales[f"activation_scale.{name}"] = static_scale(self._largest_inputs[name])
        return scales

    def state(self) -> dict[str, Any]:
        """What `restore` goes on from, between two layers; plain values."""
        return {
            "open": list(self._open),
            "smoothing": self.smoothing,
            "order": self._order,
            "measured": {name: linear.model_dump() for name, linear in self._measured.items()},
            "waiting": {name: _plain(each) for name, each in self._waiting.items()},
            "largest_inputs": self._largest_inputs,
            "ranges": [self._key_range, self._value_range],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up the decisions of an earlier process."""
        self._open = {index: self._open[index] for index in state["open"]}
        self.smoothing, self._largest_inputs = state["smoothing"], state["largest_inputs"]
        self._order = state["order"]
        self._measured = {name: LinearPrecision(**fields) for name, fields in state["measured"].items()}
        self._waiting = {name: Waiting.of(fields) for name, fields in state["waiting"].items()}
        self._key_range, self._value_range = state["ranges"]

    def _decide(
        self, inputs: Mapping[str, LinearInput], matrices: Mapping[str, Tensor], progress: Progress
    ) -> None:
        self._order += inputs
        if self._settings.linears == "none":
            self._measured |= {name: LinearPrecision(precision="float32") for name in inputs}
            return
        self._matrices = dict(matrices)
        for name, seen in inputs.items():
            self._waiting[name] = Waiting(seen, absmax(matrices[name], 0))
        ready = [
            index for index, group in self._open.items() if all(r in self._waiting for r in group.readers)
        ]
        for done, index in enumerate(ready):
            progress(done / len(ready))
            self._smooth(self._open.pop(index))
        waited_for = {linear for group in self._open.values() for linear in (*group.readers, *group.makers)}
        for name in [name for name in self._waiting if name not in waited_for]:
            if self._settings.weights == "int4" and self._waiting[name].int4_error is None:
                self._try_int4(name)
            linear = self._waiting.pop(name)
            self._measured[name] = self._keep_int4(name, linear) or self._measure(name, linear)
        self._matrices = {}

    def _smooth(self, group: SmoothingGroup) -> None:
        """Give a group the candidate with the least measured error, or none."""
        if self._settings.weights == "int4":
            for reader in group.readers:
                self._try_int4(reader)
            if any(self._waiting[reader].int4 is not None for reader in group.readers):
                return  # their activations have a scale a block
        inputs = {reader: self._waiting[reader].seen for reader in group.readers}
        largest = {reader: self._waiting[reader].largest for reader in group.readers}
        candidates = scale_candidates(group, inputs, largest)
        columns = [None if scale is None else group.columns(scale) for scale in candidates]
        matrices = {reader: self._matrix(reader) for reader in group.readers}
        compared = {reader: compared_rows(matrix) for reader, matrix in matrices.items()}
        trials = {
            reader: int8_trials(inputs[reader].sample, compared[reader], columns) for reader in group.readers
        }
        errors = [sum(each[i].relative() ** 2 for each in trials.values()) for i in range(len(candidates))]
        best = errors.index(min(errors))
        for reader in group.readers:
            if len(compared[reader]) == len(matrices[reader]):
                self._waiting[reader].trial = trials[reader][best]
        self._give(group, candidates[best])

    def _try_int4(self, name: str) -> None:
        """Round a linear to 4 bits, and keep them where they cost little enough."""
        linear, matrix = self._waiting[name], self._matrix(name)
        moment, linear.seen.moment = linear.seen.moment, None
        blocks, exact = round_weight(matrix, moment)
        trial = int4_trial(linear.seen.sample, matrix, blocks, exact)
        linear.int4_error = trial.plain.relative()
        if trial.finer.relative() <= self._settings.max_int4_error:
            linear.int4 = trial

    def _give(self, group: SmoothingGroup, scale: Tensor | None) -> None:
        """Smooth a group by the scale of its source channels."""
        if scale is None:
            return
        self.smoothing |= dict.fromkeys(group.readers, group.columns(scale))
        for maker in group.makers:
            self._waiting[maker].rows = 1 / scale
        if group.bank is not None:
            values = self._value_range[group.bank]
            self._value_range[group.bank] = values / scale.reshape(values.shape)

    def _keep_int4(self, name: str, linear: Waiting) -> LinearPrecision | None:
        """Precision of a linear in 4 bits, where it is to run so; its blocks are kept."""
        if (trial := linear.int4) is None:
            return None
        rows = linear.output_factors()
        blocks = trial.blocks.times(rows)
        same = rows is None or torch.equal(blocks.values, trial.blocks.values * rows[:, None])
        if not same:  # beyond float16, or below its normal numbers
            return None
        if not trial.exact:
            self.blocks |= blocks.tensors(name)
        plain, finer = trial.plain.relative(rows), trial.finer.relative(rows)
        enough = plain**2 - finer**2 <= self._settings.max_relative_error**2
        return LinearPrecision(
            precision="int4" if enough else "int4_a16",
            relative_error=plain,
            deployed_error=plain if enough else finer,
            exact=trial.exact,
            symmetric=blocks.minimum is None,
        )

    def _measure(self, name: str, linear: Waiting) -> LinearPrecision:
        x, scale = linear.seen.sample, self.smoothing.get(name)
        largest = linear.seen.absmax if scale is None else linear.seen.absmax / scale
        self._largest_inputs[name] = largest.amax()
        finer = None
        if name == HEAD:
            linear.trial, finer = plain_and_finer_trial(x, self._matrix(name), scale)
        elif linear.trial is None:
            (linear.trial,) = int8_trials(x, self._matrix(name), [scale])
        rows = linear.output_factors()
        error = linear.trial.relative(rows)
        asked = error if linear.int4_error is None else linear.int4_error
        if error <= self._settings.max_relative_error and name != HEAD:
            return LinearPrecision(precision="int8", relative_error=asked, deployed_error=error)
        if finer is None:
            _, finer = plain_and_finer_trial(x, self._matrix(name), scale)
        deployed = finer.relative(rows)
        if deployed <= self._settings.max_weight_error:
            return LinearPrecision(precision="int8_a16", relative_error=asked, deployed_error=deployed)
        return LinearPrecision(precision="float32", relative_error=asked)

    def _matrix(self, linear: str) -> Tensor:
        """Weight [out, in] of a linear of the layer at work, or of an earlier one, read again."""
        found = self._matrices.get(linear)
        return linear_weight(linear, self._weights) if found is None else found


def _plain(value: object) -> object:
    """`dataclasses.asdict`, but that no tensor is copied."""
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    return value

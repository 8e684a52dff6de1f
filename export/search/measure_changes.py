"""Measure changes of the unfolded model one by one, and whole plans; each figure is given as it is found.

A change is folded in closed form on the unfolded model's own stream, and the layers after it run as they
are: what is measured is the change alone, before any healing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor

from kvfold.export.fold.fold import HowToFold, fold_weights
from kvfold.export.fold.fold_settings import FoldSettings
from kvfold.export.fold.sequential import SequentialFold
from kvfold.export.model.decoder import Block
from kvfold.export.model.matmul_dtype import fast_products, matmul_dtype
from kvfold.export.model.residual_stream import ResidualStream, load_block
from kvfold.export.model.rope import magnitudes
from kvfold.export.quantize.calibrate import calibrate
from kvfold.export.quantize.observe import Observations, cache_scales
from kvfold.export.quantize.quantize_settings import QuantizeSettings
from kvfold.export.search.costs import Change, Cost, shortened_layers
from kvfold.export.search.examine import Examination
from kvfold.export.search.search_settings import SearchSettings
from kvfold.export.weights.changed_weights import dropped_names
from kvfold.export.weights.layer_journal import LayerJournal
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.plugins.contract.progress import Progress, part, unheard

Scales = dict[str, Tensor] | None
# Shares of a whole plan's time, for the progress display (SmolLM2); reading has the rest.
FOLDING, OBSERVING = 0.3, 0.5


@dataclass(frozen=True)
class Laboratory:
    """What every measurement needs.

    Attributes:
        examination: the text and questions that models are examined on.
        text: what folds and int8 scales are computed from, int64 [N, L].
        fold: dials of the fold.
        settings: of the search.
    """

    examination: Examination
    text: Tensor
    fold: FoldSettings
    settings: SearchSettings


class Station:
    """The unfolded model's streams before one layer, where changes that begin there are measured."""

    def __init__(self, laboratory: Laboratory) -> None:
        """Before layer 0."""
        self._laboratory = laboratory
        examination = laboratory.examination
        self._examination, self._config = examination, examination.config
        self._plan, self._weights = examination.identity, examination.weights
        self._stream = ResidualStream.embed(self._config, self._plan, self._weights, laboratory.text)
        self._text = examination.read_text(examination.original)
        self._questions = examination.read_questions(examination.original, self._plan)
        self._block, self._seen = self._arrive()

    @property
    def layer(self) -> int:
        """The layer that the streams stand before."""
        return self._text.layer

    def measure(self, change: Change) -> Cost:
        """What a change costs that begins at this layer."""
        match change.kind:
            case "windowed":
                assert change.window is not None
                sinks = self._laboratory.settings.sink_size
                # What a window takes from answers is measured of all layers together (`measure_globals`).
                plan = with_windows(self._plan, change.layers, change.window, sinks)
                return Cost(kl=self._kl(plan))
            case "int8":
                plan = self._plan.with_layers(change.layers, kv_dtype="int8")
                scales = cache_scales(plan, self._seen.key_range, self._seen.value_range)
                kl = self._kl(plan, scales=scales)
                # Answers count where a float cache is weighed against int8 at all.
                hurts = kl > self._laboratory.settings.negligible_int8_kl
                return Cost(kl=kl, nll=self._nll(plan, scales=scales) if hurts else None)
            case "bank":
                plan, blocks = self._fold(change.layers)
                return Cost(kl=self._kl(plan, blocks), nll=self._nll(plan, blocks))

    def advance(self) -> None:
        """Move past the layer."""
        with fast_products():
            for rows in self._stream.batches():
                self._stream.advance(self._block, rows)
        self._text.advance()
        self._questions.advance()
        if self.layer < self._config.num_hidden_layers:
            self._block, self._seen = self._arrive()

    @fast_products()
    def _arrive(self) -> tuple[Block, Observations]:
        """Attend in the next layer, and take note of its cache's ranges."""
        block, seen = load_block(self._config, self._plan, self._weights, self.layer), Observations()
        seen.watch_cache(block.self_attn, magnitudes(self._config, self._plan, self.layer))
        for rows in self._stream.batches():
            self._stream.attend(block, rows)
        return block, seen

    @fast_products()
    def _fold(self, layers: tuple[int, ...]) -> tuple[FoldPlan, list[Block]]:
        """The layers folded to one bank with one head; their blocks and those between them."""
        plan = self._plan.with_layers(layers, donor=layers[0], num_key_value_heads=1)
        span = range(layers[0], layers[-1] + 1)
        prefixes = tuple(f"model.layers.{layer}." for layer in span)
        weights = {name: self._weights[name] for name in self._weights if name.startswith(prefixes)}
        folded = {name: weights[name] for name in weights.keys() - dropped_names(plan)}
        teacher, student = self._stream.fork(self._plan), self._stream.fork(plan)
        fold = SequentialFold(self._config, weights, folded, (teacher, student), self._laboratory.fold)
        fold.fold_bank(next(bank for bank in plan.banks if bank.layer == layers[0]))
        plan = student.plan
        return plan, [load_block(self._config, plan, folded, layer).to(matmul_dtype()) for layer in span]

    def _kl(self, plan: FoldPlan, blocks: Sequence[Block] = (), scales: Scales = None) -> float:
        return self._examination.kl(self._text.finish(plan, blocks, scales))

    def _nll(self, plan: FoldPlan, blocks: Sequence[Block] = (), scales: Scales = None) -> float:
        return self._examination.nll(self._questions.finish(plan, blocks, scales))


def measure_changes(laboratory: Laboratory, changes: Collection[Change]) -> Iterator[tuple[Change, Cost]]:
    """Each change's cost, by first layer."""
    last = max((change.layers[0] for change in changes), default=-1)
    if last < 0:
        return
    station = Station(laboratory)
    while True:
        for change in changes:
            if change.layers[0] == station.layer:
                yield change, station.measure(change)
        if station.layer == last:
            return
        station.advance()


def measure_globals(
    laboratory: Laboratory, base: frozenset[int], candidates: Collection[int]
) -> Iterator[tuple[int, float]]:
    """NLL of an answer, nat, when `base` and one candidate more are global and all else is windowed."""
    examination = laboratory.examination
    walk = examination.read_questions(examination.original, _horizons(laboratory, base))
    for layer in sorted(candidates):
        while walk.layer < layer:
            walk.advance()
        yield layer, examination.nll(walk.finish(_horizons(laboratory, base | {layer})))


def measure_locals(laboratory: Laboratory) -> float:
    """NLL of an answer, nat, when every layer is windowed."""
    examination = laboratory.examination
    plan = _horizons(laboratory, frozenset())
    return examination.nll(examination.read_questions(examination.original, plan).finish(plan))


def measure_plan(laboratory: Laboratory, plan: FoldPlan, progress: Progress = unheard) -> Cost:
    """Fold a whole plan and examine it, the questions under windows no wider than measured ones."""
    examination, settings = laboratory.examination, laboratory.settings
    config = examination.config
    with TemporaryDirectory(prefix="kvfold-") as folder:
        with fast_products():
            folding, observing = part(progress, 0, FOLDING, "folding"), part(progress, FOLDING, OBSERVING)
            how, journal = HowToFold(laboratory.fold), LayerJournal(Path(folder) / "fold", "", inf)
            folded = fold_weights(config, examination.weights, plan, laboratory.text, how, folding, journal)
            in_float = QuantizeSettings(linears="none")
            calibrated = calibrate(config, folded.weights, folded.plan, laboratory.text, in_float, observing)
        progress(FOLDING + OBSERVING, "reading")
        scales, model = calibrated.scales, examination.model(folded.plan, folded.weights)
        text = examination.read_text(model).finish(folded.plan, scales=scales)
        narrow = narrowed(folded.plan, examination.identity, settings.measured_window)
        questions = examination.read_questions(model, narrow).finish(narrow, scales=scales)
        return Cost(kl=examination.kl(text), nll=examination.nll(questions))


def with_windows(plan: FoldPlan, layers: Collection[int], window: int, sinks: int) -> FoldPlan:
    """The plan with these layers windowed."""
    return plan.with_layers(layers, sliding_window=window, sink_size=sinks)


def narrowed(plan: FoldPlan, identity: FoldPlan, window: int) -> FoldPlan:
    """The plan with no window wider than this, but for those that the unfolded model has."""
    pairs = enumerate(zip(plan.layers, identity.layers, strict=True))
    wider = [
        index
        for index, (layer, own) in pairs
        if (layer.sliding_window or 0) > window and layer.sliding_window != own.sliding_window
    ]
    return plan.with_layers(wider, sliding_window=window)


def _horizons(laboratory: Laboratory, globals_: frozenset[int]) -> FoldPlan:
    """The unfolded model's plan, but that layers see no further than measured windows, unless global."""
    examination, settings = laboratory.examination, laboratory.settings
    plan, shape = examination.identity, examination.config.attention_shape
    local = shortened_layers(shape, settings.measured_window) - globals_
    return with_windows(plan, local, settings.measured_window, settings.sink_size)

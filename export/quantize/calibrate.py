"""Calibrate: smooth the weights, round them to 4 bits, measure linears as deployed, fix static scales.

One pass over the text, layer by layer: a layer is observed, smoothed and measured before the next one is
read. What is held is a layer, the residual stream, and samples of linears that still wait: those around
values that a later layer reads, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from kvfold.export.model.model_config import ModelConfig
from kvfold.export.model.norms import RMSNorm
from kvfold.export.model.residual_stream import ResidualStream, load_block
from kvfold.export.quantize.fake_int8_linear import linear_weight
from kvfold.export.quantize.layer_calibration import HEAD, LayerCalibration
from kvfold.export.quantize.observe import observe_head, observe_layer, sample_stride
from kvfold.export.quantize.precision import Quantization
from kvfold.export.quantize.quantize_settings import QuantizeSettings
from kvfold.export.quantize.smooth import smoothing_factors, smoothing_groups
from kvfold.export.weights.changed_weights import ScaledWeights
from kvfold.export.weights.layer_journal import Journal, MemoryJournal
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.plugins.contract.progress import Progress, part, unheard

# Of a layer's time, for the progress display (1.5B shape, 8,192 tokens).
OBSERVING = 0.75


@dataclass(frozen=True)
class Calibrated:
    """A calibrated model.

    Attributes:
        weights: float32, Hugging Face names, smoothed on access; in float they compute what was given.
        scales: `key_scale.<layer>` and `value_scale.<layer>` float32 (KV heads, 1, head_dim) of
            every int8 bank; `activation_scale.<linear>` float32 () of every int8 linear.
        precision: each linear's precision and measured error.
        smoothing: by linear whose input was smoothed, what each channel was divided by and the weight's
            column multiplied with: powers of two, float32 [in].
        factors: the same by tensor, as `ScaledWeights` takes them.
        blocks: of 4-bit linears whose weights are not in blocks already, as `Blocks.tensors` has them.
    """

    weights: Mapping[str, Tensor]
    scales: dict[str, Tensor]
    precision: Quantization
    smoothing: dict[str, Tensor]
    factors: dict[str, Tensor]
    blocks: Mapping[str, Tensor]


def calibrate(
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    plan: FoldPlan,
    tokens: Tensor,
    settings: QuantizeSettings | None = None,
    progress: Progress = unheard,
    journal: Journal | None = None,
) -> Calibrated:
    """Calibrate a (folded) model on tokens [N, L].

    All static scales are absmax / 127: nothing seen in calibration is clipped. int8 linears use
    activation scales per token on the CPU; the static ones are for targets with Q/DQ nodes.
    A journal on disk goes on after a kill, by default there is none.
    """
    settings, journal = settings or QuantizeSettings(), journal or MemoryJournal()
    groups = list(smoothing_groups(config, plan)) if settings.smooth and settings.linears == "int8" else []
    found = LayerCalibration(groups, weights, settings)
    stride, count = sample_stride(tokens), config.num_hidden_layers
    with torch.no_grad():
        stream, first = ResidualStream.embed(config, plan, weights, tokens), 0
        if (state := journal.load()) is not None:
            stream.restore(state["stream"])
            found.restore(state["found"])
            first = state["layer"]
            state = None  # the stream is in it
        for layer in range(first, count):
            tell = part(progress, layer / (count + 1), 1 / (count + 1), f"layer {layer} of {count}")
            block = load_block(config, plan, weights, layer)
            seen = observe_layer(stream, block, stride, part(tell, 0, OBSERVING), found.needs_moment)
            found.take(seen, block, part(tell, OBSERVING, 1 - OBSERVING))
            del block  # before the next one is there
            journal.finish(layer, found.take_blocks(), partial(_state, layer + 1, stream, found))
        if first <= count:
            progress(count / (count + 1), "the head")
            _calibrate_head(stream, weights, found, stride)
            journal.finish(count, found.take_blocks(), partial(_state, count + 1, stream, found))
        precision = Quantization(linears=found.linears, weights=settings.weights)
        factors = smoothing_factors(groups, found.smoothing, weights)
        return Calibrated(
            weights=ScaledWeights(weights, factors),
            scales=found.scales(plan),
            precision=precision,
            smoothing=found.smoothing,
            factors=factors,
            blocks=journal.tensors,
        )


def _calibrate_head(
    stream: ResidualStream, weights: Mapping[str, Tensor], found: LayerCalibration, stride: int
) -> None:
    norm = RMSNorm(stream.config.hidden_size, stream.config.rms_norm_eps)
    norm.weight.copy_(weights["model.norm.weight"])
    weight = linear_weight(HEAD, weights)
    found.take_head(observe_head(stream, norm, stride, moment=found.needs_moment(weight)), weight)


def _state(layer: int, stream: ResidualStream, found: LayerCalibration) -> dict[str, object]:
    return {"layer": layer, "stream": stream.state(), "found": found.state()}

"""SmoothQuant (arXiv 2211.10438), folded into the weights: the float model stays what it was, to the bit.

A channel of a linear's input is divided by s where it is made and its column multiplied by s, which
moves outliers of activations into the weights. Where it is made is a norm's weight, or a linear
before (values for o_proj, up_proj for down_proj): there a row is scaled, which per-channel weights
do not notice. Scales are powers of two, so that no float is rounded on the way.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from kvfold.export.model.model_config import ModelConfig
from kvfold.export.model.norms import BLOCK_NORMS
from kvfold.export.quantize.fake_int8_linear import tensor_names
from kvfold.export.quantize.observe import LinearInput
from kvfold.export.weights.changed_weights import COLUMNS, ROWS
from kvfold.plugins.contract.fold_plan import FoldPlan

ALPHAS = (0.3, 0.5, 0.7)
FLOOR = 1e-5


@dataclass(frozen=True)
class SmoothingGroup:
    """Tensors that share one scale per channel.

    Attributes:
        sources: tensors whose first axis makes the channels.
        readers: linears that read them.
        repeats: how many query heads read each KV head (values only).
        width: channels that repeat together (head_dim for values).
        bank: the producer layer whose values are scaled, if they are.
    """

    sources: tuple[str, ...]
    readers: tuple[str, ...]
    width: int
    repeats: int = 1
    bank: int | None = None

    @property
    def makers(self) -> tuple[str, ...]:
        """Linears of which the sources are the last outputs; none where a norm makes the channels."""
        owners = {"v_proj": "qkv_proj", "up_proj": "gate_up_proj"}
        module, _, part = self.sources[0].removesuffix(".weight").rpartition(".")
        return (f"{module}.{owners[part]}",) if part in owners else ()

    def columns(self, scale: Tensor) -> Tensor:
        """Scale of each reader's input column [in] from the scale of each source channel."""
        return scale.reshape(-1, 1, self.width).expand(-1, self.repeats, -1).flatten()

    def scale(self, columns: Tensor) -> Tensor:
        """Inverse of `columns`."""
        return columns.reshape(-1, self.repeats, self.width)[:, 0].flatten()

    def channels(self, columns: Tensor) -> Tensor:
        """Largest value of each source channel over the columns [in] that read it."""
        return columns.reshape(-1, self.repeats, self.width).amax(1).flatten()


def smoothing_groups(config: ModelConfig, plan: FoldPlan) -> Iterator[SmoothingGroup]:
    """Every place of the model where smoothing is exact."""
    hidden, inner, norms = config.hidden_size, config.intermediate_size, BLOCK_NORMS[config.norm_placement]
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        for norm, reader in (
            (norms.attention_input, "self_attn.qkv_proj"),
            (norms.mlp_input, "mlp.gate_up_proj"),
        ):
            if norm is not None:
                yield SmoothingGroup((f"{prefix}{norm}.weight",), (prefix + reader,), hidden)
        up = _tensors(f"{prefix}mlp.up_proj", config.mlp_bias)
        yield SmoothingGroup(up, (f"{prefix}mlp.down_proj",), inner)
    for bank in plan.banks:
        yield SmoothingGroup(
            sources=_tensors(f"model.layers.{bank.layer}.self_attn.v_proj", config.attention_bias),
            readers=tuple(f"model.layers.{i}.self_attn.o_proj" for i in bank.layers),
            width=config.head_dim,
            repeats=config.num_attention_heads // bank.num_key_value_heads,
            bank=bank.layer,
        )
    if not config.tie_word_embeddings:
        yield SmoothingGroup(("model.norm.weight",), ("lm_head",), hidden)


def _tensors(linear: str, has_bias: bool) -> tuple[str, ...]:
    return (f"{linear}.weight", f"{linear}.bias") if has_bias else (f"{linear}.weight",)


def scale_candidates(
    group: SmoothingGroup, inputs: Mapping[str, LinearInput], largest: Mapping[str, Tensor]
) -> list[Tensor | None]:
    """Scales of source channels to choose from, None for none; `largest` is each reader's weight's, [in]."""
    activation = torch.stack([group.channels(inputs[reader].absmax) for reader in group.readers]).amax(0)
    weight = torch.stack([group.channels(largest[reader]) for reader in group.readers]).amax(0)
    activation, weight = activation.clamp_min(FLOOR), weight.clamp_min(FLOOR)
    scales = (activation**alpha / weight ** (1 - alpha) for alpha in ALPHAS)
    return [None, *(torch.exp2(torch.round(torch.log2(scale))) for scale in scales)]


def smoothing_factors(
    groups: Iterable[SmoothingGroup], smoothing: Mapping[str, Tensor], names: Container[str]
) -> dict[str, Tensor]:
    """What `ScaledWeights` takes, of what each linear's input was divided by; `names` are of all tensors."""
    factors: dict[str, Tensor] = {}
    for group in groups:
        if not set(group.readers) <= smoothing.keys():
            continue
        columns = smoothing[group.readers[0]]
        factors |= {source + ROWS: 1 / group.scale(columns) for source in group.sources}
        for reader in group.readers:
            factors |= {name + COLUMNS: columns for name in tensor_names(reader, names)}
    return factors

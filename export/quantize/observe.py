"""What the model does on calibration text: ranges of every linear's input and of every KV bank."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor, nn

from kvfold.export.model.decoder import Attention, Block
from kvfold.export.model.norms import RMSNorm
from kvfold.export.model.residual_stream import ResidualStream
from kvfold.export.model.rope import magnitudes
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.plugins.contract.progress import Progress, unheard

SAMPLE_TOKENS = 256
INT8_MAX = 127


@dataclass
class LinearInput:
    """Input of one linear of width `in`.

    Attributes:
        absmax: largest magnitude of each channel over the whole text, [in].
        samples: inputs of evenly spaced positions of every sequence, a tensor [tokens, in] a batch;
            each sequence's first token, where outliers live, is among them, and at least one other. About
            SAMPLE_TOKENS in all, more where there are more sequences.
        moment: sum of x x^T over all other positions, [in, in], where it was asked for: what is found from
            it is measured on text that it has not seen.
    """

    absmax: Tensor
    samples: list[Tensor] = field(default_factory=list)
    moment: Tensor | None = None

    @classmethod
    def of(cls, width: int, *, moment: bool = False) -> Self:
        """Nothing seen yet of an input of `width`."""
        return cls(torch.zeros(width), moment=torch.zeros(width, width) if moment else None)

    def add(self, x: Tensor, stride: int) -> None:
        """Take note of x [B, L, in], and keep every `stride`-th position."""
        self.absmax = torch.maximum(self.absmax, x.abs().amax((0, 1)))
        self.samples.append(x[:, ::stride].flatten(0, 1).clone())
        if self.moment is not None:
            others = torch.arange(x.shape[1]) % stride != 0
            rows = (x[:, others] if stride > 1 else x).flatten(0, 1)
            self.moment.addmm_(rows.T, rows)

    @property
    def sample(self) -> Tensor:
        """All samples, [tokens, in]."""
        return torch.cat(self.samples)


@dataclass
class Observations:
    """Statistics of a layer over the text.

    Attributes:
        inputs: by linear (module path in the decoder), its input.
        key_range: by producer layer, largest |key| [KV heads, head_dim] that any position can give:
            RoPE turns a channel pair, so both channels take the modulus of the pair.
        value_range: by producer layer, largest |value| [KV heads, head_dim].
    """

    inputs: dict[str, LinearInput] = field(default_factory=dict)
    key_range: dict[int, Tensor] = field(default_factory=dict)
    value_range: dict[int, Tensor] = field(default_factory=dict)

    def watch(self, name: str, linear: nn.Linear, stride: int, *, moment: bool = False) -> None:
        """Take note of the linear's input on every call."""
        self.inputs[name] = seen = LinearInput.of(linear.in_features, moment=moment)
        linear.register_forward_pre_hook(lambda _, args: seen.add(args[0], stride))

    def watch_cache(self, attention: Attention, magnitude: Tensor) -> None:
        """Take note of a producer's keys and values on every call.

        `magnitude` [head_dim / 2] is what RoPE multiplies the modulus of each channel pair with.
        """
        shape = attention.num_key_value_heads, attention.head_dim
        self.key_range[attention.layer] = torch.zeros(shape)
        self.value_range[attention.layer] = torch.zeros(shape)

        def note(module: nn.Module, args: object, projected: Tensor) -> None:
            _, key, value = attention.split(attention.normalise(projected))
            assert key is not None and value is not None, "only producers are watched"
            _, k_norm = attention.head_norms
            key = key if k_norm is None else k_norm(key)
            modulus = (torch.hypot(*key.chunk(2, dim=-1)) * magnitude).repeat(1, 1, 1, 2)
            for ranges, seen in ((self.key_range, modulus), (self.value_range, value.abs())):
                ranges[attention.layer] = torch.maximum(ranges[attention.layer], seen.amax((0, 1)))

        attention.qkv_proj.register_forward_hook(note)


def observe_layer(
    stream: ResidualStream,
    block: Block,
    stride: int,
    progress: Progress = unheard,
    needs_moment: Callable[[Tensor], bool] = lambda weight: False,
) -> Observations:
    """Run the text through the layer that the stream stands before; every `stride`-th position is sampled.

    `needs_moment` says of a linear's weight whether its input's moment is asked for.
    """
    seen, layer = Observations(), block.self_attn.layer
    for name, module in block.named_modules():
        if isinstance(module, nn.Linear):
            moment = needs_moment(module.weight)
            seen.watch(f"model.layers.{layer}.{name}", module, stride, moment=moment)
    if stream.plan.is_producer(layer):
        seen.watch_cache(block.self_attn, magnitudes(stream.config, stream.plan, layer))
    batches = list(stream.batches())
    for index, rows in enumerate(batches):
        progress(index / len(batches))
        stream.attend(block, rows)
        stream.advance(block, rows)
    return seen


def observe_head(stream: ResidualStream, norm: RMSNorm, stride: int, *, moment: bool = False) -> LinearInput:
    """What the head reads, behind the last layer and its norm."""
    seen = LinearInput.of(stream.config.hidden_size, moment=moment)
    for rows in stream.batches():
        seen.add(norm(stream.hidden[rows]), stride)
    return seen


def sample_stride(tokens: Tensor) -> int:
    """Positions between two samples of a text [N, L]."""
    return max(1, min(tokens.numel() // SAMPLE_TOKENS, tokens.shape[1] // 2))


def cache_scales(
    plan: FoldPlan, key_range: Mapping[int, Tensor], value_range: Mapping[int, Tensor]
) -> dict[str, Tensor]:
    """Static scales of every int8 bank by their names in the bundle, from ranges by producer layer."""
    scales: dict[str, Tensor] = {}
    for bank in plan.banks:
        if bank.kv_dtype == "int8":
            scales[f"key_scale.{bank.layer}"] = static_scale(key_range[bank.layer])[:, None]
            scales[f"value_scale.{bank.layer}"] = static_scale(value_range[bank.layer])[:, None]
    return scales


def static_scale(absmax: Tensor) -> Tensor:
    """absmax / 127, so that nothing that was seen is clipped; 1 where nothing moved."""
    return torch.where(absmax == 0, 1.0, absmax / INT8_MAX)

"""What the model does on calibration text: ranges of every linear's input and of every KV bank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from kvfold.export.model.decoder import Attention, Block
from kvfold.export.model.model_config import ModelConfig
from kvfold.export.model.norms import RMSNorm
from kvfold.export.model.residual_stream import ResidualStream, load_block
from kvfold.export.model.rope import magnitudes
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.plugins.contract.progress import Progress, unheard

SAMPLE_TOKENS = 256


@dataclass
class LinearInput:
    """Input of one linear of width `in`.

    Attributes:
        absmax: largest magnitude of each channel over the whole text, [in].
        samples: inputs of evenly spaced positions of every sequence, a tensor [tokens, in] a batch;
            each sequence's first token, where outliers live, is among them. About SAMPLE_TOKENS in
            all, more where there are more sequences.
    """

    absmax: Tensor
    samples: list[Tensor] = field(default_factory=list)

    def add(self, x: Tensor, stride: int) -> None:
        """Take note of x [B, L, in], and keep every `stride`-th position."""
        self.absmax = torch.maximum(self.absmax, x.abs().amax((0, 1)))
        self.samples.append(x[:, ::stride].flatten(0, 1).clone())

    @property
    def sample(self) -> Tensor:
        """All samples, [tokens, in]."""
        return torch.cat(self.samples)

    def divide(self, scale: Tensor) -> None:
        """The same statistics with each channel divided by scale [in]."""
        self.absmax = self.absmax / scale
        self.samples = [self.sample / scale]


@dataclass
class Observations:
    """Statistics of a model over the text.

    Attributes:
        inputs: by linear (module path in the decoder), its input.
        key_range: by producer layer, largest |key| [KV heads, head_dim] that any position can give:
            RoPE turns a channel pair, so both channels take the modulus of the pair.
        value_range: by producer layer, largest |value| [KV heads, head_dim].
    """

    inputs: dict[str, LinearInput] = field(default_factory=dict)
    key_range: dict[int, Tensor] = field(default_factory=dict)
    value_range: dict[int, Tensor] = field(default_factory=dict)

    def watch(self, name: str, linear: nn.Linear, stride: int) -> None:
        """Take note of the linear's input on every call."""
        self.inputs[name] = seen = LinearInput(torch.zeros(linear.in_features))
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


def observe(
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    plan: FoldPlan,
    tokens: Tensor,
    progress: Progress = unheard,
) -> Observations:
    """Run tokens [N, L] through the float model, layer by layer.

    Memory holds one layer and one batch beside the observations (SAMPLE_TOKENS rows a linear).
    """
    seen, stride = Observations(), max(1, tokens.numel() // SAMPLE_TOKENS)
    with torch.no_grad():
        stream = ResidualStream.embed(config, plan, weights, tokens)
        for layer in range(config.num_hidden_layers):
            progress(layer / config.num_hidden_layers)
            block = load_block(config, plan, weights, layer)
            _watch_block(seen, block, layer, stride)
            if plan.is_producer(layer):
                seen.watch_cache(block.self_attn, magnitudes(config, plan, layer))
            for rows in stream.batches():
                stream.attend(block, rows)
                stream.advance(block, rows)
        norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        norm.weight.copy_(weights["model.norm.weight"])
        seen.inputs["lm_head"] = LinearInput(torch.zeros(config.hidden_size))
        for rows in stream.batches():
            seen.inputs["lm_head"].add(norm(stream.hidden[rows]), stride)
    return seen


def _watch_block(seen: Observations, block: Block, layer: int, stride: int) -> None:
    for name, module in block.named_modules():
        if isinstance(module, nn.Linear):
            seen.watch(f"model.layers.{layer}.{name}", module, stride)

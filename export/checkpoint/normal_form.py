"""A file's tensors in normal form: what a family computes beside the decoder is done to its weights.

Each tensor is changed where it is read, from its name, the config and the StoredForm alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from kvfold.export.model.decoder import PACKED
from kvfold.export.model.model_config import ModelConfig
from kvfold.export.model.norms import BLOCK_NORMS
from kvfold.export.model.stored_form import StoredForm

EMBEDDING, FINAL_NORM = "model.embed_tokens.weight", "model.norm.weight"
TURNING = ("q_proj", "k_proj", "q_norm", "k_norm")


def fused_names(config: ModelConfig, form: StoredForm) -> Iterator[str]:
    """Names of the tensors that hold several of the normal form's."""
    if form.fused:
        for layer in range(config.num_hidden_layers):
            yield from (f"model.layers.{layer}.{linear}.weight" for linear in PACKED)


def parts_of(name: str, shape: tuple[int, ...], config: ModelConfig, form: StoredForm) -> dict[str, slice]:
    """Which rows of a stored tensor of this shape are which tensors; the last part has whatever is left."""
    for linear, parts in PACKED.items():
        if form.fused and f".{linear}." in name:
            module, leaf = linear.rsplit(".", 1)
            names = [name.replace(f".{module}.{leaf}.", f".{module}.{part}.") for part in parts]
            sizes = _part_sizes(linear, config)[:-1]
            starts = [sum(sizes[:index]) for index in range(len(names))]
            ends = [*starts[1:], max(starts[-1], shape[0] if shape else 0)]
            return dict(zip(names, map(slice, starts, ends), strict=True))
    return {name: slice(None)}


def _part_sizes(linear: str, config: ModelConfig) -> list[int]:
    if linear.startswith("mlp."):
        return [config.intermediate_size] * 2
    return [
        heads * config.head_dim
        for heads in (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
    ]


def read_normal(read: Callable[[], Tensor], name: str, config: ModelConfig, form: StoredForm) -> Tensor:
    """The tensor `name` of the normal form, where `read` gives what is stored."""
    tensor = read()
    if form.norm_offset and name.endswith("norm.weight"):
        tensor = tensor + form.norm_offset
    factor = _factor(name, config, form)
    if factor != 1.0:
        tensor = tensor * factor
    return _in_rope_order(name, tensor, config)


def _factor(name: str, config: ModelConfig, form: StoredForm) -> float:
    """What a tensor is multiplied with so that no activation has to be."""
    if name == EMBEDDING:
        return form.embedding_multiplier
    if name == FINAL_NORM:
        tied = form.embedding_multiplier if config.tie_word_embeddings else 1.0
        return form.logits_multiplier / tied
    norms = BLOCK_NORMS[config.norm_placement]
    adds = norms.attention_output or "o_proj", norms.mlp_output or "down_proj"
    return form.residual_multiplier if any(f".{each}." in name for each in adds) else 1.0


def _in_rope_order(name: str, tensor: Tensor, config: ModelConfig) -> Tensor:
    """Channels of q and k so that pairs are (i, i + head_dim / 2); files pair those that turn alone."""
    _, _, rest = name.partition("model.layers.")
    layer, _, leaf = rest.partition(".")
    if not any(f"self_attn.{part}." in leaf for part in TURNING):
        return tensor
    size = config.head_dim
    turning = config.ropes[config.layer_ropes[int(layer)]].rotary_dim(size)
    if turning in (0, size):
        return tensor
    order = torch.arange(size)
    first, second, still = order[: turning // 2], order[turning // 2 : turning], order[turning:]
    order = torch.cat([first, still[: len(still) // 2], second, still[len(still) // 2 :]])
    heads = tensor.reshape(-1, size, *tensor.shape[1:])
    return heads[:, order].reshape(tensor.shape)

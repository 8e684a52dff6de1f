"""Tiny random models for the tests: a config, and weights that fit it under any plan."""

from __future__ import annotations

import torch
from torch import Tensor

from kvfold.export.model.decoder import Attention, Decoder
from kvfold.export.model.dense_attention import DenseAttention
from kvfold.export.model.mlp import GatedMLP
from kvfold.export.model.model_config import ModelConfig
from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.plugins.contract.plan_presets import Preset, build_plan

VOCAB_SIZE = 97


def tiny_config(**changes: object) -> ModelConfig:
    """Four layers, six query and two KV heads of 16, context 256."""
    values: dict[str, object] = {
        "family": "llama",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rms_norm_eps": 1e-5,
        "ropes": ({"theta": 10_000.0},),
        "max_position_embeddings": 256,
    }
    return ModelConfig.model_validate(values | changes)


def tiny_plan(
    config: ModelConfig, preset: str, kv_dtype: str = "float32", head_sink: bool = False
) -> FoldPlan:
    """A preset with a window of 32 and every third layer global; `character`'s first bank has RoPE slots."""
    dials = {"preset": preset, "sliding_window": 32, "global_every": 3, "kv_dtype": kv_dtype}
    dials |= {"sink_size": 0 if head_sink else 4, "head_sink": head_sink}
    plan = build_plan(Preset.model_validate(dials), config.attention_shape)
    if preset != "character":
        return plan
    pairs = config.head_dim // 2
    return plan.with_rope_slots(0, tuple(index * index // pairs for index in range(pairs)))


def tiny_decoder(config: ModelConfig, plan: FoldPlan, seed: int = 0) -> Decoder:
    """A decoder with random weights, large enough that attention matters."""
    generator = torch.Generator().manual_seed(seed)
    decoder = Decoder(config, plan)
    if config.tie_word_embeddings:
        decoder.lm_head.weight = decoder.model.embed_tokens.weight
    for name, parameter in decoder.named_parameters():
        shape = parameter.shape
        if name.endswith(("layernorm.weight", "norm.weight")):
            values = torch.rand(shape, generator=generator) + 0.5
        else:
            values = torch.randn(shape, generator=generator) * (2.0 / shape[-1] ** 0.5)
        parameter.data.copy_(values)
    return decoder.requires_grad_(False).eval()


def hugging_face_names(decoder: Decoder) -> dict[str, Tensor]:
    """The decoder's weights as a checkpoint has them: projections apart, no head where it is tied."""
    weights = decoder.state_dict()
    if decoder.config.tie_word_embeddings:
        del weights["lm_head.weight"]
    for path, module in decoder.named_modules():
        if isinstance(module, Attention):
            sizes = [module.query_size, module.key_value_size, module.key_value_size]
            packed, parts = f"{path}.qkv_proj", ["q_proj", "k_proj", "v_proj"]
        elif isinstance(module, GatedMLP):
            sizes = [decoder.config.intermediate_size] * 2
            packed, parts = f"{path}.gate_up_proj", ["gate_proj", "up_proj"]
        else:
            continue
        for leaf in ("weight", "bias"):
            if (tensor := weights.pop(f"{packed}.{leaf}", None)) is not None:
                found = torch.split(tensor, sizes if len(tensor) == sum(sizes) else sizes[:1])
                names = (f"{path}.{part}.{leaf}" for part in parts)
                weights |= dict(zip(names, found, strict=False))
    return weights


def dense_logits(decoder: Decoder, input_ids: Tensor) -> Tensor:
    """Logits [B, L, vocab_size] of whole sequences [B, L], from caches that nobody rounds."""
    logits: Tensor = decoder(input_ids, DenseAttention(decoder.config, decoder.plan))
    return logits


def kv_scales(plan: FoldPlan, value: float = 0.05) -> dict[str, Tensor]:
    """The same static scale for every channel of every int8 bank."""
    return {
        f"{kind}_scale.{bank.layer}": torch.full((bank.num_key_value_heads, 1, bank.head_dim), value)
        for bank in plan.banks
        if bank.kv_dtype == "int8"
        for kind in ("key", "value")
    }

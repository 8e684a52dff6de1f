"""GGUF metadata in Hugging Face's terms: what the config.json of the same model would say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvfold.export.model.family import Family, Metadata
from kvfold.export.model.layer_kinds import FULL, SLIDING
from kvfold.plugins.contract.errors import CheckpointError, UnsupportedModelError

# config.json key -> GGUF key below the architecture's name.
SAME = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "max_position_embeddings": "context_length",
}
SCALES = {
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "attention_multiplier": "attention.scale",
    "logits_scaling": "logit_scale",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
WINDOW, PATTERN = "attention.sliding_window", "attention.sliding_window_pattern"
# Layers by which llama.cpp knows the one size of a gemma whose queries are scaled by hidden_size / heads.
LARGEST_GEMMAS = {"gemma2": 46, "gemma3_text": 62}
# Values that leave a file as the decoder computes it, and what others would need.
NEUTRAL: dict[str, tuple[tuple[object, ...], str]] = {
    "expert_count": ((0,), "mixture of experts (MoE) is not implemented; use a dense model"),
    "nextn_predict_layers": ((0,), "layers that predict several tokens are not implemented"),
    "attention.causal": ((True,), "only causal attention is implemented"),
    "rope.scaling.yarn_ext_factor": (
        (1.0, -1.0),
        "YaRN of another mix is not implemented",
    ),
    "rope.scaling.alpha": ((0.0,), "this scaling of RoPE is not implemented"),
    "attention.temperature_scale": ((0.0,), "scaling by position is not implemented"),
}


@dataclass(frozen=True)
class GgufTensorFacts:
    """What a GGUF file says of its model only through its tensors.

    Attributes:
        vocab_size: rows of the embedding.
        tie_word_embeddings: the file has no output matrix.
        bias_keys: as a family's, those whose biases the file holds.
        rope_factors: divisors of each RoPE frequency, from `rope_freqs.weight`; None without them.
        long_factors, short_factors: the same of LongRoPE.
    """

    vocab_size: int
    tie_word_embeddings: bool
    bias_keys: tuple[str, ...] = ()
    rope_factors: tuple[float, ...] | None = None
    long_factors: tuple[float, ...] | None = None
    short_factors: tuple[float, ...] | None = None


def huggingface_config(family: Family, said: Metadata, facts: GgufTensorFacts) -> dict[str, object]:
    """The config.json of a file that says `said`, keys below its architecture's name.

    Raises:
        UnsupportedModelError: it asks for what the decoder does not compute.
    """
    values = {key: _plain(value) for key, value in said.items()}
    _refuse(family, values)
    heads = values.get("attention.head_count")
    head_dim = _head_dim(values)
    return {
        "model_type": family.name,
        **{ours: values.get(theirs) for ours, theirs in SAME.items()},
        "num_key_value_heads": values.get("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "vocab_size": facts.vocab_size,
        "tie_word_embeddings": facts.tie_word_embeddings,
        **{key: True for key in facts.bias_keys if key in family.bias_keys},
        **{ours: values[theirs] for ours, theirs in SCALES.items() if values.get(theirs)},
        **_attention_scale(family, values, head_dim),
        **_windows(family, values),
        **_rope(values, facts, head_dim),
    }


def _plain(value: Any) -> Any:
    """A value as a config.json says it: 1e-05, not what float32 makes of it; one number for equal layers."""
    if isinstance(value, float):
        with np.errstate(over="ignore"):  # infinite is refused by whatever reads it
            return float(str(np.float32(value)))
    if (
        isinstance(value, list)
        and value
        and all(isinstance(each, int) and each == value[0] for each in value)
    ):
        return value if isinstance(value[0], bool) else value[0]
    return value


def _head_dim(values: Metadata) -> Any:
    hidden, heads = values.get("embedding_length"), values.get("attention.head_count")
    derived = hidden // heads if isinstance(hidden, int) and isinstance(heads, int) and heads > 0 else None
    return values.get("attention.key_length") or derived


def _refuse(family: Family, values: Metadata) -> None:
    for key, (accepted, reason) in NEUTRAL.items():
        if values.get(key) is not None and values[key] not in accepted:
            raise UnsupportedModelError(f"{family.name} with {key} = {values[key]!r:.40}: {reason}")
    for key in (*SAME.values(), "attention.head_count_kv"):
        if isinstance(values.get(key), Sequence):
            raise UnsupportedModelError(f"{family.name} with a different {key} per layer is not implemented")
    size, head_dim = values.get("attention.value_length"), _head_dim(values)
    if size not in (None, head_dim):
        raise UnsupportedModelError(
            f"{family.name} with attention.value_length = {size}: it must equal head_dim, {head_dim}"
        )
    turning = values.get("rope.dimension_count", head_dim)
    if turning != head_dim and not family.reads("partial_rotary_factor"):
        raise UnsupportedModelError(
            f"{family.name} with rope.dimension_count = {turning}: RoPE must turn all of head_dim, {head_dim}"
        )
    if family.name == "granite" and values.get("rope.scaling.finetuned") is False:
        raise UnsupportedModelError(
            "granite without RoPE (rope.scaling.finetuned = False) is not implemented"
        )


def _attention_scale(family: Family, values: Metadata, head_dim: Any) -> dict[str, object]:
    """What a file leaves out because llama.cpp derives it."""
    if not isinstance(head_dim, int):
        return {}
    if family.reads("query_pre_attn_scalar"):
        hidden, heads = values.get("embedding_length"), values.get("attention.head_count")
        largest = values.get("block_count") == LARGEST_GEMMAS.get(family.name)
        return {"query_pre_attn_scalar": hidden // heads if largest and hidden and heads else head_dim}
    if family.reads("attention_multiplier") and not values.get("attention.scale"):
        return {"attention_multiplier": head_dim**-0.5}
    return {}


def _windows(family: Family, values: Metadata) -> dict[str, object]:
    """The file's window, and its layers where they are not those of the family."""
    window = values.get(WINDOW, family.defaults.get("sliding_window") if family.name == "gemma2" else None)
    if not window:
        return {"sliding_window": None}
    pattern, layers = values.get(PATTERN), values.get("block_count")
    switch = {"use_sliding_window": True} if family.reads("use_sliding_window") else {}
    if isinstance(pattern, list):
        return {
            **switch,
            "sliding_window": window,
            "layer_types": [SLIDING if slides else FULL for slides in pattern],
        }
    if isinstance(pattern, int) and isinstance(layers, int):
        types = [FULL if pattern and index % pattern == pattern - 1 else SLIDING for index in range(layers)]
        return {**switch, "sliding_window": window, "layer_types": types}
    context = values.get("context_length")
    if family.window_layers not in ("from_max_window_layers", "without_rope"):
        return {"sliding_window": window}
    if isinstance(context, int) and isinstance(window, int) and window < context:
        raise UnsupportedModelError(
            f"{family.name} with {WINDOW} = {window}: the file does not say which layers have it; use the "
            "Hugging Face checkpoint"
        )
    return {"sliding_window": None}  # it hides nothing


def _rope(values: Metadata, facts: GgufTensorFacts, head_dim: Any) -> dict[str, object]:
    keys: dict[str, object] = {"rope_theta": values.get("rope.freq_base", 10_000.0)}
    if "rope.freq_base_swa" in values:
        keys["rope_local_base_freq"] = values["rope.freq_base_swa"]
    turning = values.get("rope.dimension_count", head_dim)
    if turning != head_dim and isinstance(turning, int) and isinstance(head_dim, int):
        share = turning / head_dim
        keys["partial_rotary_factor"] = (
            share if int(head_dim * share) == turning else math.nextafter(share, 1)
        )
    if facts.long_factors and facts.short_factors:
        return {**keys, **_longrope(values, facts.long_factors, facts.short_factors)}
    linear = values.get("rope.scale_linear", 1.0)  # the key of older files
    factor = values.get("rope.scaling.factor", linear)
    kind = values.get("rope.scaling.type", "none" if factor in (0.0, 1.0) else "linear")
    if kind == "linear" and factor == 0:
        raise CheckpointError(
            "GGUF metadata: rope.scaling.factor is 0 with RoPE of type linear, which divides positions by "
            "it; fetch the file again, or use the Hugging Face checkpoint"
        )
    if kind == "yarn":
        return {**keys, "rope_scaling": _yarn(values, factor)}
    _refuse_attention_factor(values, kind)
    return {**keys, "rope_scaling": {"rope_type": kind, "factor": factor}}


def _attention_factor(values: Metadata) -> float:
    """What cos and sin are multiplied with beyond what follows from the kind of RoPE."""
    factor = values.get("rope.scaling.attn_factor", 1.0)
    if isinstance(factor, bool) or not isinstance(factor, int | float):
        raise CheckpointError(f"GGUF metadata: rope.scaling.attn_factor must be a number, not {factor!r:.40}")
    return factor


def _refuse_attention_factor(values: Metadata, kind: object) -> None:
    factor = _attention_factor(values)
    if factor != 1.0:
        raise UnsupportedModelError(
            f"rope.scaling.attn_factor = {factor!r:.40} with RoPE of type {kind!r:.40} is not implemented"
        )


def _yarn(values: Metadata, factor: Any) -> dict[str, object]:
    known = {
        "original_max_position_embeddings": "rope.scaling.original_context_length",
        "beta_fast": "rope.scaling.yarn_beta_fast",
        "beta_slow": "rope.scaling.yarn_beta_slow",
        "attention_factor": "rope.scaling.yarn_attn_factor",
        "mscale_all_dim": "rope.scaling.yarn_log_multiplier",
    }
    keys = {ours: values[theirs] for ours, theirs in known.items() if values.get(theirs)}
    if "mscale_all_dim" in keys:
        keys["mscale"] = 1.0
    scale = _attention_factor(values)
    if scale != 1.0 and isinstance(factor, int | float) and factor > 1:
        keys["attention_factor"] = scale * (0.1 * math.log(factor) + 1.0)
    return {"rope_type": "yarn", "factor": factor, **keys}


def _longrope(
    values: Metadata, long_factors: Sequence[float], short_factors: Sequence[float]
) -> dict[str, object]:
    """Its factor of attention is said where it is none that follows from the two contexts."""
    context = values.get("context_length")
    original = values.get("rope.scaling.original_context_length", context)
    scaling: dict[str, object] = {
        "rope_type": "longrope",
        "long_factor": [_plain(each) for each in long_factors],
        "short_factor": [_plain(each) for each in short_factors],
    }
    said = _attention_factor(values)
    if isinstance(context, int) and isinstance(original, int) and original > 1:
        ratio = context / original
        derived = math.sqrt(1 + math.log(ratio) / math.log(original)) if ratio > 1 else 1.0
        if not math.isclose(said, derived, rel_tol=1e-5):
            scaling["attention_factor"] = said
    return {"rope_scaling": scaling, "original_max_position_embeddings": original}

"""Model families as declarations: what a checkpoint's config must say for the one decoder to run it.

A family is a row of a table, never a subclass. Whatever the decoder does not compute is refused by
name, with the reason, before a weight is read.
"""

from __future__ import annotations

from collections.abc import Collection
from math import sqrt

from pydantic import ValidationError as PydanticValidationError

from kvfold.export.model.family import SAME_KEYS, Family, Metadata, number, positive
from kvfold.export.model.layer_kinds import ropes, sliding_windows
from kvfold.export.model.model_config import Activation, ModelConfig
from kvfold.export.model.stored_form import StoredForm
from kvfold.export.model.unsupported import refuse_quantised_config, refuse_unread_keys, unknown_family
from kvfold.plugins.contract.errors import CheckpointError, UnsupportedModelError
from kvfold.plugins.contract.fold_plan import describe_errors

WINDOW_KEYS = ("sliding_window", "use_sliding_window", "layer_types")
GEMMA_KEYS = ("hidden_activation", "query_pre_attn_scalar", "sliding_window", "layer_types")
GEMMA_DEFAULTS: Metadata = {
    "hidden_activation": "gelu_pytorch_tanh",
    "head_dim": 256,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}
QWEN_DEFAULTS: Metadata = {
    "max_position_embeddings": 32768,
    "num_key_value_heads": 32,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
FAMILIES = (
    Family(
        "llama",
        "LlamaForCausalLM",
        "llama",
        gguf_interleaved=True,
        bias_keys=("attention_bias", "mlp_bias"),
        defaults={"max_position_embeddings": 2048},
    ),
    Family(
        "mistral",
        "MistralForCausalLM",
        None,
        window_layers="all",
        keys=("hidden_act", "sliding_window"),
        defaults={"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
    ),
    Family(
        "qwen2",
        "Qwen2ForCausalLM",
        "qwen2",
        attention_bias=True,
        window_layers="from_max_window_layers",
        keys=("hidden_act", "attention_bias", "max_window_layers", *WINDOW_KEYS),
        defaults=QWEN_DEFAULTS,
    ),
    Family(
        "qwen3",
        "Qwen3ForCausalLM",
        "qwen3",
        bias_keys=("attention_bias",),
        qk_norm="head",
        window_layers="from_max_window_layers",
        keys=("hidden_act", "max_window_layers", *WINDOW_KEYS),
        defaults={**QWEN_DEFAULTS, "head_dim": 128},
    ),
    Family(
        "gemma2",
        "Gemma2ForCausalLM",
        "gemma2",
        bias_keys=("attention_bias",),
        norm_placement="both",
        norm_offset=1.0,
        scaled_embedding=True,
        window_layers="all_but_each_last",
        keys=(*GEMMA_KEYS, "attn_logit_softcapping", "final_logit_softcapping"),
        defaults={
            **GEMMA_DEFAULTS,
            "max_position_embeddings": 8192,
            "sliding_window_pattern": 2,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
    ),
    Family(
        "gemma3_text",
        "Gemma3ForCausalLM",
        "gemma3",
        backbone="Gemma3TextModel",
        bias_keys=("attention_bias",),
        qk_norm="head",
        norm_placement="both",
        norm_offset=1.0,
        scaled_embedding=True,
        window_layers="all_but_each_last",
        keys=(*GEMMA_KEYS, "final_logit_softcapping", "sliding_window_pattern", "rope_local_base_freq"),
        defaults={
            **GEMMA_DEFAULTS,
            "max_position_embeddings": 131072,
            "rope_theta": 1_000_000.0,
            "rope_local_base_freq": 10_000.0,
            "sliding_window_pattern": 6,
        },
    ),
    Family(
        "phi3",
        "Phi3ForCausalLM",
        "phi3",
        fused=True,
        window_layers="all",
        keys=("hidden_act", "sliding_window", "partial_rotary_factor"),
        defaults={
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
        },
    ),
    Family(
        "smollm3",
        "SmolLM3ForCausalLM",
        "smollm3",
        gguf_interleaved=True,
        bias_keys=("attention_bias", "mlp_bias"),
        window_layers="without_rope",
        keys=("hidden_act", "no_rope_layers", "no_rope_layer_interval", *WINDOW_KEYS),
        defaults={
            "max_position_embeddings": 32768,
            "num_key_value_heads": 4,
            "rope_theta": 2_000_000.0,
            "no_rope_layer_interval": 4,
            "use_sliding_window": False,
            "tie_word_embeddings": True,
        },
    ),
    Family(
        "olmo2",
        "Olmo2ForCausalLM",
        "olmo2",
        bias_keys=("attention_bias",),
        qk_norm="projection",
        norm_placement="post",
        defaults={"max_position_embeddings": 2048, "rms_norm_eps": 1e-5},
    ),
    Family(
        "granite",
        "GraniteForCausalLM",
        "granite",
        gguf_interleaved=True,
        bias_keys=("attention_bias", "mlp_bias"),
        keys=(
            *("hidden_act", "attention_multiplier", "embedding_multiplier"),
            *("residual_multiplier", "logits_scaling"),
        ),
        defaults={"max_position_embeddings": 2048, "attention_multiplier": 1.0},
    ),
)
SUPPORTED = ", ".join(family.name for family in FAMILIES)
# What configs call the activations that the MLP's gate passes.
ACTIVATIONS: dict[object, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}


def config_from_huggingface(raw: Metadata) -> ModelConfig:
    """ModelConfig of a config.json, as transformers 4 or 5 writes it.

    Raises:
        UnsupportedModelError: the family or one of its features is not implemented; it is named.
        CheckpointError: a value is missing or of the wrong type.
    """
    family = huggingface_family(raw)
    refuse_quantised_config(family, raw)
    refuse_unread_keys(family, raw)
    known = family.known(raw)
    heads = known.get("num_attention_heads")
    kinds, layer_ropes = ropes(family, known)
    return build_config(
        "config.json",
        family,
        {
            **{key: known[key] for key in SAME_KEYS if key in known},
            "num_key_value_heads": known.get("num_key_value_heads") or heads,
            "head_dim": known.get("head_dim") or divide(known.get("hidden_size"), heads),
            "ropes": kinds,
            "layer_ropes": layer_ropes,
            "sliding_windows": sliding_windows(family, known),
            "hidden_act": _activation(family, known),
            "attention_scale": _attention_scale(known),
            "attention_softcap": number(known, "attn_logit_softcapping") or 0.0,
            "final_softcap": number(known, "final_logit_softcapping") or 0.0,
            "tie_word_embeddings": known["tie_word_embeddings"],
            **bias_switches(family, [key for key in family.bias_keys if known.get(key)]),
        },
    )


def form_from_huggingface(raw: Metadata) -> StoredForm:
    """How the tensors of a checkpoint with this config.json differ from the normal form.

    Raises:
        UnsupportedModelError: the family is not implemented.
        CheckpointError: a value is of the wrong type.
    """
    family = huggingface_family(raw)
    known = family.known(raw)
    width = sqrt(positive(known, "hidden_size") or 1.0) if family.scaled_embedding else 1.0
    return StoredForm(
        fused=family.fused,
        norm_offset=family.norm_offset,
        embedding_multiplier=width * (positive(known, "embedding_multiplier") or 1.0),
        residual_multiplier=positive(known, "residual_multiplier") or 1.0,
        logits_multiplier=1.0 / (positive(known, "logits_scaling") or 1.0),
    )


def huggingface_family(raw: Metadata) -> Family:
    """The family that both `model_type` and `architectures`, where given, agree on.

    Raises:
        UnsupportedModelError: it is none, or they name two.
        CheckpointError: they say nothing.
    """
    model_type, architectures = raw.get("model_type"), raw.get("architectures") or []
    if not isinstance(architectures, list):
        raise CheckpointError(f"config.json: architectures must be a list, not {architectures!r:.80}")
    if model_type is None and not architectures:
        raise CheckpointError("config.json has neither model_type nor architectures; is it a model's?")
    for family in FAMILIES:
        fits = not architectures or (len(architectures) == 1 and architectures[0] in family.classes)
        if model_type in (family.name, None) and fits:
            return family
    others = [family.name for family in FAMILIES if any(each in family.classes for each in architectures)]
    if others and any(model_type == family.name for family in FAMILIES):
        raise UnsupportedModelError(
            f"config.json names two families: model_type {model_type}, architectures of {others[0]}; correct "
            "the one that is wrong"
        )
    raise unknown_family(model_type, architectures, raw, SUPPORTED)


def _activation(family: Family, known: Metadata) -> Activation:
    key = "hidden_activation" if family.reads("hidden_activation") else "hidden_act"
    declared = known.get(key)
    for name, activation in ACTIVATIONS.items():
        if declared == name:
            return activation
    raise UnsupportedModelError(
        f"{family.name} with {key} = {declared!r:.80}: the MLP knows {', '.join(map(str, ACTIVATIONS))}"
    )


def _attention_scale(known: Metadata) -> float | None:
    """Factor on q.k where it is not head_dim ** -0.5."""
    base = positive(known, "query_pre_attn_scalar")
    return positive(known, "attention_multiplier") if base is None else base**-0.5


def bias_switches(family: Family, asked: Collection[str]) -> dict[str, bool]:
    """The biases of a ModelConfig, given which of the family's `bias_keys` a checkpoint asks for."""
    attention, mlp = (key in asked and key in family.bias_keys for key in ("attention_bias", "mlp_bias"))
    return {
        "attention_bias": family.attention_bias or attention,
        "output_bias": attention,
        "mlp_bias": mlp,
    }


def divide(size: object, parts: object) -> object:
    """size / parts where both are numbers; None otherwise, which validation then reports by name."""
    return size // parts if isinstance(size, int) and isinstance(parts, int) and parts > 0 else None


def build_config(subject: str, family: Family, values: dict[str, object]) -> ModelConfig:
    """A family's ModelConfig, validated; raises CheckpointError that names each wrong value of `subject`."""
    switches = {"qk_norm": family.qk_norm, "norm_placement": family.norm_placement}
    try:
        config = ModelConfig.model_validate({"family": family.name, **switches, **values})
    except PydanticValidationError as error:
        raise CheckpointError(describe_errors(subject, error)) from error
    if config.num_attention_heads % config.num_key_value_heads:
        raise CheckpointError(
            f"{subject}: {config.num_key_value_heads} KV heads do not divide "
            f"{config.num_attention_heads} query heads"
        )
    return config

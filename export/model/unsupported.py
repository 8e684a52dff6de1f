"""What is refused by name before a weight is read, and what to use instead."""

from __future__ import annotations

from collections.abc import Sequence

from kvfold.export.model.family import Family, Metadata
from kvfold.plugins.contract.errors import UnsupportedModelError

# Keys by which a config says that its weights are quantised: transformers', compressed-tensors', MLX's.
QUANTISED = ("quantization_config", "compression_config", "quantization")

MOE = "a mixture of experts (MoE), and the decoder computes one MLP for all tokens"
STATES = (
    "a state-space or recurrent model, whole or in part, and the decoder computes attention in every layer"
)
SEES = "multimodal, and the decoder reads tokens of text only"
LATENT = "a model with multi-head latent attention (MLA), whose cache holds no keys and values"
# Families that people try, by `model_type` or GGUF architecture: what they are, and what to use instead.
KINDS: dict[str, dict[str, str]] = {
    MOE: {
        "mixtral": "a mistral",
        **dict.fromkeys(("qwen2_moe", "qwen2moe"), "a dense qwen2"),
        **dict.fromkeys(("qwen3_moe", "qwen3moe"), "a dense qwen3"),
        **dict.fromkeys(("gpt_oss", "gpt-oss"), "a dense qwen3 or llama in floats, not MXFP4,"),
        "granitemoe": "a dense granite",
        "granitemoeshared": "a dense granite",
        "olmoe": "an olmo2",
        "flex_olmo": "an olmo2",
        "phimoe": "a phi3",
        "dbrx": "a dense llama or qwen3",
        "jetmoe": "a dense llama or qwen3",
        "ernie4_5_moe": "a dense llama or qwen3",
        "glm4_moe": "a dense llama or qwen3",
        "llama4_text": "a llama of 3.3 or before",
    },
    LATENT: dict.fromkeys(
        ("deepseek_v2", "deepseek_v3", "deepseek2", "minicpm3", "kimi_k2"),
        "a dense llama or qwen2, for example a distillate of DeepSeek-R1",
    ),
    STATES: {
        **dict.fromkeys(
            ("mamba", "mamba2", "falcon_mamba", "jamba", "zamba", "zamba2", "bamba", "rwkv", "plamo2"),
            "a dense llama or qwen3",
        ),
        **dict.fromkeys(("falcon_h1", "nemotron_h", "lfm2", "minimax"), "a dense llama or qwen3"),
        **dict.fromkeys(("granitemoehybrid", "granitehybrid"), "a granite of 3.3 or before"),
        "recurrent_gemma": "a gemma2",
        "qwen3_next": "a dense qwen3",
    },
    SEES: {
        "gemma3": "its text model (gemma3_text), which `Gemma3ForCausalLM.from_pretrained(folder)"
        ".save_pretrained(text_folder)` of transformers writes, with the tokenizer beside it,",
        "gemma3n": "a gemma3_text",
        "paligemma": "a gemma2",
        "llama4": "a llama of 3.3 or before",
        "mllama": "a llama of text",
        **dict.fromkeys(("llava", "llava_next", "llava_onevision"), "the language model it was made from"),
        **dict.fromkeys(("idefics2", "idefics3", "smolvlm"), "a llama, for example SmolLM2"),
        **dict.fromkeys(("qwen2_vl", "qwen2vl", "qwen2_5_vl", "qwen2_audio", "qwen2_5_omni"), "a qwen2"),
        **dict.fromkeys(("qwen3_vl", "qwen3vl", "qwen3_omni_moe"), "a qwen3"),
        **dict.fromkeys(("mistral3", "pixtral", "voxtral"), "a mistral"),
        **dict.fromkeys(("phi4_multimodal", "phi3_v"), "a phi3 of text, for example Phi-4-mini"),
        "internvl": "the language model it was made from",
    },
}
# What a name or a key betrays where the family itself is not known.
TRACES = {
    MOE: ("moe", "mixtral", "num_experts", "num_local_experts", "n_routed_experts"),
    LATENT: ("kv_lora_rank",),
    STATES: ("mamba", "rwkv", "ssm", "state_size"),
    SEES: ("_vl", "vision", "vision_config", "audio_config", "image", "multimodal"),
}
# Parts of config.json keys that change what is computed, unless a family reads the key.
CHANGING = {
    "expert": MOE,
    "moe_": MOE,
    "lora_rank": LATENT,
    "mamba": STATES,
    "ssm_": STATES,
    "linear_attn": STATES,
    "vision_config": SEES,
    "audio_config": SEES,
    "cross_attention": SEES,
    **dict.fromkeys(
        ("multiplier", "logit_scale", "logits_scaling", "scale_emb", "scale_depth", "dim_model_base"),
        "scaling",
    ),
    **dict.fromkeys(
        ("softcap", "soft_cap", "query_pre_attn", "clip_qkv", "qk_norm", "qk_layernorm"), "attention"
    ),
    **dict.fromkeys(
        ("attn_output_gate", "temperature_tuning", "attention_chunk_size", "dual_chunk", "alibi"), "attention"
    ),
    **dict.fromkeys(("sliding_window", "layer_types", "bidirectional", "kv_shared"), "attention"),
    **dict.fromkeys(("no_rope", "rotary", "rope_local", "rope_percent", "use_mrope"), "RoPE"),
    **dict.fromkeys(("mlp_bias", "attention_bias", "qkv_bias", "lm_head_bias"), "biases"),
    **dict.fromkeys(("parallel_attn", "parallel_residual", "altup", "laurel", "per_layer_input"), "blocks"),
    "is_encoder_decoder": "blocks",
}
# Parts of a model as they are said to be refused.
OF_ITS_FAMILY = ("scaling", "attention", "RoPE", "biases", "blocks")


def refuse_quantised_config(family: Family, raw: Metadata) -> None:
    """Raise UnsupportedModelError where a config says that the weights are quantised."""
    for key in QUANTISED:
        value = raw.get(key)
        if value is not None:
            method = value.get("quant_method") if isinstance(value, dict) else None
            named = f" (quant_method {method!r:.40})" if method else ""
            raise UnsupportedModelError(
                f"{family.name} with {key} = {value!r:.80}{named}: weights are quantised already; start from "
                "the float checkpoint"
            )


def refuse_unread_keys(family: Family, raw: Metadata) -> None:
    """Raise UnsupportedModelError at a key that changes what models compute and that this family ignores."""
    for key, value in raw.items():
        if family.reads(key) or _changes_nothing(family, key, value, raw):
            continue
        for part, what in CHANGING.items():
            if part in key:
                reason = (
                    f"transformers computes no such {what} in this family"
                    if what in OF_ITS_FAMILY
                    else f"it says that this is {what}"
                )
                raise UnsupportedModelError(
                    f"{family.name} with {key} = {value!r:.80}: {reason}; use a checkpoint of one family, or "
                    "remove the key if it was left there by mistake"
                )


def _changes_nothing(family: Family, key: str, value: object, raw: Metadata) -> bool:
    """Values that say that a feature is off, or what the family computes anyway."""
    if value is None or value is False or value in (0, "", [], {}):
        return True
    if "multiplier" in key or "scal" in key or "rotary" in key:
        return value is not True and value == 1
    if key == "layer_types":
        windowed = family.reads("sliding_window") and family.known(raw).get("sliding_window") is not None
        kind = "sliding_attention" if windowed else "full_attention"
        return isinstance(value, list) and all(each == kind for each in value)
    if key == "sliding_window":  # as long as the context, or not in use
        context = raw.get("max_position_embeddings")
        unused = raw.get("use_sliding_window") is False
        return unused or (isinstance(value, int) and isinstance(context, int) and value >= context)
    # Others tell of a window: nothing where there is none, and where there is one it is read itself.
    return "sliding_window" in key and (family.reads("sliding_window") or "sliding_window" not in raw)


def unknown_family(
    model_type: object,
    architectures: Sequence[object],
    raw: Metadata,
    supported: str,
    what_it_is: str = "model family",
) -> UnsupportedModelError:
    """What to say of a config that no family matches."""
    named = ", ".join(str(name) for name in [model_type, *architectures] if name)
    for what, instead in KINDS.items():
        if isinstance(model_type, str) and model_type in instead:
            return UnsupportedModelError(
                f"{what_it_is} {named} is not supported: it is {what}; use {instead[model_type]} instead"
            )
    for what, traces in TRACES.items():
        if any(trace in raw or trace in str(model_type).lower() for trace in traces):
            return UnsupportedModelError(
                f"{what_it_is} {named} is not supported: it is {what}; supported are {supported}"
            )
    return UnsupportedModelError(f"{what_it_is} {named} is not supported; supported are {supported}")

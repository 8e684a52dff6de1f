"""Model families as declarations: what a checkpoint's config must say for the one decoder to run it.

A family is a row of a table, never a subclass. Whatever the decoder does not compute is refused by
name, with the reason, before a weight is read.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError as PydanticValidationError

from kvfold.export.model.model_config import ModelConfig, QkNorm
from kvfold.export.model.rope_config import LinearRope, Llama3Rope
from kvfold.plugins.contract.errors import CheckpointError, UnsupportedModelError
from kvfold.plugins.contract.fold_plan import describe_errors

Metadata = Mapping[str, Any]


@dataclass(frozen=True)
class Family:
    """One supported family.

    Attributes:
        name: Hugging Face's `model_type`, and the name in ModelConfig.
        architecture: Hugging Face's class, as in `architectures`.
        gguf_architecture: `general.architecture` of its GGUF files; None where llama.cpp files the
            family under another one.
        gguf_interleaved: llama.cpp stores Q and K rows for interleaved RoPE pairs.
        attention_bias: q, k and v always have a bias.
        bias_keys: keys of its config that give it biases: `attention_bias` to q, k, v and o_proj, `mlp_bias`
            to gate_proj, up_proj and down_proj.
        qk_norm: whether q and k pass an RMSNorm, and over what.
        head_dim: Hugging Face's default; None is hidden_size / num_attention_heads.
        sliding_window: Hugging Face's default where the config names none.
    """

    name: str
    architecture: str
    gguf_architecture: str | None
    gguf_interleaved: bool = False
    attention_bias: bool = False
    bias_keys: tuple[str, ...] = ()
    qk_norm: QkNorm | None = None
    head_dim: int | None = None
    sliding_window: int | None = None

    @property
    def backbone(self) -> str:
        """Hugging Face's class without the head; `save_pretrained` of one writes no prefix and no head."""
        return self.architecture.replace("ForCausalLM", "Model")


FAMILIES = (
    Family(
        "llama", "LlamaForCausalLM", "llama", gguf_interleaved=True, bias_keys=("attention_bias", "mlp_bias")
    ),
    Family("mistral", "MistralForCausalLM", None, sliding_window=4096),
    Family("qwen2", "Qwen2ForCausalLM", "qwen2", attention_bias=True),
    Family("qwen3", "Qwen3ForCausalLM", "qwen3", bias_keys=("attention_bias",), qk_norm="head", head_dim=128),
)
SUPPORTED = ", ".join(family.name for family in FAMILIES)

# Keys by which a config says that its weights are quantised: transformers', compressed-tensors', MLX's.
QUANTISED = ("quantization_config", "compression_config", "quantization")

# Config keys that change the computation: the values the decoder implements, and what others would need.
NEUTRAL: dict[str, tuple[tuple[object, ...], str]] = {
    "hidden_act": (("silu",), "only the SwiGLU MLP with silu is implemented"),
    "mlp_bias": ((False,), "transformers computes no biases in the MLP of this family"),
    "attention_bias": ((False,), "transformers computes no biases in the attention of this family"),
    "partial_rotary_factor": ((1, 1.0), "RoPE must turn every channel of a head"),
    **dict.fromkeys(QUANTISED, ((), "weights are quantised already; start from the float checkpoint")),
    "num_experts": ((0,), "mixture of experts (MoE) is not implemented"),
    "num_local_experts": ((0,), "mixture of experts (MoE) is not implemented"),
    "n_routed_experts": ((0,), "mixture of experts (MoE) is not implemented"),
}

# config.json keys that carry ModelConfig's own names.
SAME_KEYS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
    "rms_norm_eps",
    "max_position_embeddings",
)


def config_from_huggingface(raw: Metadata) -> ModelConfig:
    """ModelConfig of a config.json, as transformers 4 or 5 writes it.

    Raises:
        UnsupportedModelError: the family or one of its features is not implemented; it is named.
        CheckpointError: a value is missing or of the wrong type.
    """
    family = _huggingface_family(raw)
    for key, (accepted, reason) in NEUTRAL.items():
        value = raw.get(key)
        computed = key in family.bias_keys or (key == "attention_bias" and family.attention_bias)
        if value is not None and value not in accepted and not computed:
            method = value.get("quant_method") if isinstance(value, Mapping) and key in QUANTISED else None
            named = f" (quant_method {method!r:.40})" if method else ""
            raise UnsupportedModelError(f"{family.name} with {key} = {value!r:.80}{named}: {reason}")
    _refuse_sliding(family, raw)
    heads = raw.get("num_attention_heads")
    theta, scaling = _huggingface_rope(raw)
    return build_config(
        "config.json",
        family,
        {
            **{key: raw[key] for key in SAME_KEYS if key in raw},
            "num_key_value_heads": raw.get("num_key_value_heads") or heads,
            "head_dim": raw.get("head_dim") or family.head_dim or divide(raw.get("hidden_size"), heads),
            "ropes": ({"theta": theta, "scaling": scaling},),
            "tie_word_embeddings": raw.get("tie_word_embeddings", False),
            **bias_switches(family, [key for key in family.bias_keys if raw.get(key)]),
        },
    )


def _huggingface_family(raw: Metadata) -> Family:
    """The family that both `model_type` and `architectures`, where given, agree on."""
    model_type, architectures = raw.get("model_type"), raw.get("architectures") or []
    if not isinstance(architectures, list):
        raise CheckpointError(f"config.json: architectures must be a list, not {architectures!r:.80}")
    for family in FAMILIES:
        if model_type in (family.name, None) and architectures in (
            [family.architecture],
            [family.backbone],
            [],
        ):
            if model_type is None and not architectures:
                raise CheckpointError(
                    "config.json has neither model_type nor architectures; is it a model's?"
                )
            return family
    named = ", ".join(str(name) for name in [model_type, *architectures] if name)
    raise UnsupportedModelError(f"model family {named} is not supported; supported are {SUPPORTED}")


def _refuse_sliding(family: Family, raw: Metadata) -> None:
    """A window the checkpoint was trained with is refused; one as long as the context changes nothing."""
    window = raw.get("sliding_window", family.sliding_window)
    uses_window = raw.get("use_sliding_window", family.sliding_window is not None)
    if isinstance(raw.get("layer_types"), list) and raw["layer_types"]:
        uses_window = "sliding_attention" in raw["layer_types"]
    context = raw.get("max_position_embeddings")
    if uses_window and isinstance(window, int) and isinstance(context, int) and window < context:
        raise UnsupportedModelError(
            f"{family.name} with sliding_window = {window}: a checkpoint's own window is not supported; "
            f"lower max_position_embeddings from {context} to {window} to use it up to there, unchanged"
        )


def _huggingface_rope(raw: Metadata) -> tuple[object, dict[str, object] | None]:
    """rope_theta and scaling from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling`."""
    parameters = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(parameters, Mapping):
        raise CheckpointError(f"config.json: rope parameters must be an object, not {parameters!r:.80}")
    if any(isinstance(value, Mapping) for value in parameters.values()):
        raise UnsupportedModelError(
            "rope parameters per layer type are not implemented; one RoPE for all layers is"
        )
    if parameters.get("partial_rotary_factor", 1) != 1:
        raise UnsupportedModelError(f"partial_rotary_factor: {NEUTRAL['partial_rotary_factor'][1]}")
    theta = parameters.get("rope_theta") or raw.get("rope_theta") or 10000.0
    return theta, scaling_fields(parameters.get("rope_type", parameters.get("type")), parameters)


def scaling_fields(kind: object, parameters: Metadata) -> dict[str, object] | None:
    """The fields of LinearRope or Llama3Rope; None for plain RoPE."""
    if kind in (None, "default", "none"):
        return None
    for scheme in (LinearRope, Llama3Rope):
        fields = scheme.model_fields
        if kind == fields["rope_type"].default:
            given = {key: parameters[key] for key in fields if key in parameters}
            return {**given, "rope_type": kind}
    raise UnsupportedModelError(
        f"rope type {kind} is not supported; supported are default, linear and llama3"
    )


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
    try:
        config = ModelConfig.model_validate({"family": family.name, "qk_norm": family.qk_norm, **values})
    except PydanticValidationError as error:
        raise CheckpointError(describe_errors(subject, error)) from error
    if config.num_attention_heads % config.num_key_value_heads:
        raise CheckpointError(
            f"{subject}: {config.num_key_value_heads} KV heads do not divide "
            f"{config.num_attention_heads} query heads"
        )
    return config

"""ModelConfig from GGUF metadata, whose keys follow llama.cpp instead of Hugging Face."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvfold.export.checkpoint.gguf_header import GgufHeader
from kvfold.export.model.families import (
    FAMILIES,
    SUPPORTED,
    bias_switches,
    build_config,
    divide,
)
from kvfold.export.model.family import Family, Metadata
from kvfold.export.model.layer_kinds import scaling_fields
from kvfold.export.model.model_config import ModelConfig
from kvfold.export.model.rope_config import Llama3Rope
from kvfold.plugins.contract.errors import CheckpointError, UnsupportedModelError

# ModelConfig field -> GGUF key below the architecture's name.
GGUF_KEYS = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "max_position_embeddings": "context_length",
}
ROPE_FACTORS = "rope_freqs.weight"  # llama3 RoPE: a tensor there, part of the config here
# A tensor that is there where the family\'s config asks for biases by this key.
BIASES = {"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_gate.bias"}


@dataclass(frozen=True)
class GgufTensorFacts:
    """What a GGUF file says of its model only through its tensors.

    Attributes:
        vocab_size: rows of the embedding.
        tie_word_embeddings: the file has no output matrix.
        bias_keys: as a family's, those whose biases the file holds.
        rope_factors: divisors of each RoPE frequency, from `rope_freqs.weight`; None without them.
    """

    vocab_size: int
    tie_word_embeddings: bool
    bias_keys: tuple[str, ...] = ()
    rope_factors: tuple[float, ...] | None = None


def config_of_header(header: GgufHeader) -> ModelConfig:
    """ModelConfig of a GGUF file; no weight is read.

    Raises:
        UnsupportedModelError: the architecture or one of its features is not implemented; it is named.
        CheckpointError: a value or the embedding is missing, or of the wrong type.
    """
    _refuse_parts(header)
    gguf_family(header.metadata)  # an unknown architecture is named before its tensors are missed
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None or not embedding.shape:
        raise CheckpointError(
            f"{header.path}: missing tensor token_embd.weight; is this a vocabulary-only file?"
        )
    facts = GgufTensorFacts(
        vocab_size=embedding.shape[0],
        tie_word_embeddings="output.weight" not in header.tensors,
        bias_keys=tuple(key for key, name in BIASES.items() if name in header.tensors),
        rope_factors=header.read_floats(ROPE_FACTORS),
    )
    return config_from_gguf(header.metadata, facts)


def _refuse_parts(header: GgufHeader) -> None:
    """Files that are a part of a model, or belong to one."""
    count = header.metadata.get("split.count", 1)
    if count != 1:
        raise UnsupportedModelError(
            f"{header.path} is one of {count} parts of a model; join them with `llama-gguf-split --merge` "
            "and name the whole"
        )
    kind = header.metadata.get("general.type", "model")
    if kind != "model":
        raise UnsupportedModelError(
            f"{header.path} holds no model but general.type = {kind!r:.40}; name the model's own file "
            "(merge a LoRA adapter into it with `llama-export-lora`)"
        )


def gguf_family(metadata: Metadata) -> Family:
    """The family of a GGUF file; raises UnsupportedModelError that names its architecture."""
    architecture = metadata.get("general.architecture")
    for family in FAMILIES:
        if family.gguf_architecture is not None and family.gguf_architecture == architecture:
            return family
    raise UnsupportedModelError(
        f"GGUF architecture {architecture} is not supported; supported are {SUPPORTED}"
    )


def config_from_gguf(metadata: Metadata, facts: GgufTensorFacts) -> ModelConfig:
    """ModelConfig of a GGUF file's metadata.

    Raises:
        UnsupportedModelError: the architecture or one of its features is not implemented; it is named.
        CheckpointError: a value is missing or of the wrong type.
    """
    family = gguf_family(metadata)
    prefix = f"{family.gguf_architecture}."
    raw = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
    heads = raw.get("attention.head_count")
    head_dim = raw.get("attention.key_length") or divide(raw.get("embedding_length"), heads)
    _refuse_gguf_features(family, raw, head_dim)
    config = build_config(
        "GGUF metadata",
        family,
        {
            **{field: raw[key] for field, key in GGUF_KEYS.items() if key in raw},
            "num_key_value_heads": raw.get("attention.head_count_kv", heads),
            "head_dim": head_dim,
            "vocab_size": facts.vocab_size,
            "ropes": ({"theta": raw.get("rope.freq_base", 10000.0), "scaling": _rope_scaling(raw)},),
            "tie_word_embeddings": facts.tie_word_embeddings,
            **bias_switches(family, facts.bias_keys),
        },
    )
    return config if facts.rope_factors is None else _with_llama3_rope(config, facts.rope_factors)


def _refuse_gguf_features(family: Family, raw: Metadata, head_dim: object) -> None:
    if raw.get("expert_count"):
        raise UnsupportedModelError(
            f"{family.name} with expert_count = {raw['expert_count']}: MoE is not implemented"
        )
    for key in ("rope.dimension_count", "attention.value_length"):
        if raw.get(key, head_dim) != head_dim:
            raise UnsupportedModelError(
                f"{family.name} with {key} = {raw[key]}: it must equal head_dim, {head_dim}"
            )
    if any(isinstance(raw.get(key), Sequence) for key in ("attention.head_count", "attention.head_count_kv")):
        raise UnsupportedModelError(
            f"{family.name} with a different number of heads per layer is not implemented"
        )
    window = raw.get("attention.sliding_window")
    if window and window < raw.get("context_length", 0):
        raise UnsupportedModelError(f"{family.name} with attention.sliding_window = {window}: not supported")


def _rope_scaling(raw: Metadata) -> dict[str, object] | None:
    linear = raw.get("rope.scale_linear", 1.0)  # the key of older files
    kind = raw.get("rope.scaling.type", "none" if linear == 1.0 else "linear")
    return scaling_fields(kind, {"factor": raw.get("rope.scaling.factor", linear)})


def _with_llama3_rope(plain: ModelConfig, factors: tuple[float, ...]) -> ModelConfig:
    """The config whose RoPE has the divisors that a GGUF stores in place of Llama 3.1's parameters.

    All published Llama 3.1 to 3.3 models share every parameter but the factor, which is the largest
    divisor; a file that this does not reproduce is refused.
    """
    import torch  # few files need it here, and a look at a config must not load it

    from kvfold.export.model.rope import inverse_frequencies

    scaling = Llama3Rope(
        factor=max(factors), low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
    )
    scaled = plain.ropes[0].model_copy(update={"scaling": scaling})
    divisors = inverse_frequencies(plain, plain.ropes[0]) / inverse_frequencies(plain, scaled)
    if divisors.shape != (len(factors),) or not torch.allclose(divisors, torch.tensor(factors), rtol=1e-4):
        raise UnsupportedModelError(
            "the GGUF's RoPE frequency factors are not those of Llama 3.1; use the Hugging Face checkpoint"
        )
    return plain.model_copy(update={"ropes": (scaled,)})

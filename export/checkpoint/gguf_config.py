"""ModelConfig and StoredForm of a GGUF file, whose keys follow llama.cpp instead of Hugging Face."""

from __future__ import annotations

from dataclasses import replace

from kvfold.export.checkpoint.gguf_header import GgufHeader
from kvfold.export.checkpoint.gguf_keys import SAME, WINDOW, GgufTensorFacts, huggingface_config
from kvfold.export.model.families import (
    FAMILIES,
    SUPPORTED,
    config_from_huggingface,
    form_from_huggingface,
)
from kvfold.export.model.family import Family, Metadata
from kvfold.export.model.model_config import ModelConfig
from kvfold.export.model.rope_config import Llama3Rope
from kvfold.export.model.stored_form import StoredForm
from kvfold.export.model.unsupported import unknown_family
from kvfold.plugins.contract.errors import CheckpointError, UnsupportedModelError

# Tensors that are a part of the config here.
ROPE_FACTORS = "rope_freqs.weight"
LONG_FACTORS, SHORT_FACTORS = "rope_factors_long.weight", "rope_factors_short.weight"
CONFIG_TENSORS = (ROPE_FACTORS, LONG_FACTORS, SHORT_FACTORS)
# A tensor that is there where the family's config asks for biases by this key.
BIASES = {"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_gate.bias"}


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
    return config_from_gguf(header.metadata, _tensor_facts(header, embedding.shape[0]))


def form_of_header(header: GgufHeader, config: ModelConfig) -> StoredForm:
    """How the file's tensors differ from the normal form of its config: its norms hold gemma's 1 already."""
    raw = _huggingface_config(header.metadata, _tensor_facts(header, config.vocab_size))
    return replace(form_from_huggingface(raw), norm_offset=0.0)


def _tensor_facts(header: GgufHeader, vocab_size: int) -> GgufTensorFacts:
    return GgufTensorFacts(
        vocab_size=vocab_size,
        tie_word_embeddings="output.weight" not in header.tensors,
        bias_keys=tuple(key for key, name in BIASES.items() if name in header.tensors),
        rope_factors=header.read_floats(ROPE_FACTORS),
        long_factors=header.read_floats(LONG_FACTORS),
        short_factors=header.read_floats(SHORT_FACTORS),
    )


def _refuse_parts(header: GgufHeader) -> None:
    """Files that are a part of a model, or belong to one."""
    count = header.metadata.get("split.count", 1)
    if count != 1:
        raise UnsupportedModelError(
            f"{header.path} is one of {count} parts of a model; join them with `llama-gguf-split --merge` "
            "and name the whole"
        )
    kind = header.metadata.get("general.type", "model")
    if kind == "mmproj" or header.metadata.get("general.architecture") == "clip":
        raise UnsupportedModelError(
            f"{header.path} holds the projector of a multimodal model, which kvfold does not run; name the "
            "GGUF file of its language model, if that is a supported one"
        )
    if kind != "model":
        raise UnsupportedModelError(
            f"{header.path} holds no model but general.type = {kind!r:.40}; name the model's own file "
            "(merge a LoRA adapter into it with `llama-export-lora`)"
        )


def gguf_family(metadata: Metadata) -> Family:
    """The family that has a GGUF file's architecture; raises UnsupportedModelError that names it."""
    architecture = metadata.get("general.architecture")
    for family in FAMILIES:
        if family.gguf_architecture is not None and family.gguf_architecture == architecture:
            return family
    raise unknown_family(architecture, [], {}, SUPPORTED, "GGUF architecture")


def config_from_gguf(metadata: Metadata, facts: GgufTensorFacts) -> ModelConfig:
    """ModelConfig of a GGUF file's metadata.

    Raises:
        UnsupportedModelError: the architecture or one of its features is not implemented; it is named.
        CheckpointError: a value is missing or of the wrong type.
    """
    raw = _huggingface_config(metadata, facts)
    try:
        config = config_from_huggingface(raw)
    except CheckpointError as error:
        raise CheckpointError(f"GGUF metadata, in Hugging Face's terms: {error}") from error
    return config if facts.rope_factors is None else _with_llama3_rope(config, facts.rope_factors)


def _huggingface_config(metadata: Metadata, facts: GgufTensorFacts) -> dict[str, object]:
    family = gguf_family(metadata)
    prefix = f"{family.gguf_architecture}."
    said = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
    if missing := [key for key in SAME.values() if key not in said]:
        raise CheckpointError(f"GGUF metadata has no {prefix}{missing[0]}; fetch the file again")
    if family.name == "llama" and said.get(WINDOW):
        family = next(each for each in FAMILIES if each.name == "mistral")  # a llama with windows
    return huggingface_config(family, said, facts)


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
    return plain.model_copy(update={"ropes": (scaled, *plain.ropes[1:])})

"""Config readers: what is supported is read from both generations of files, the rest is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from kvfold.export.checkpoint.gguf_config import GgufTensorFacts, config_from_gguf
from kvfold.export.model.families import config_from_huggingface
from kvfold.export.model.rope_config import LinearRope, Llama3Rope, Rope
from kvfold.export.model.unsupported import QUANTISED
from kvfold.plugins.contract.errors import CheckpointError, UnsupportedModelError

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "max_position_embeddings": 8192,
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "vocab_size": 49152,
}
MISTRAL = LLAMA | {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
QWEN2 = LLAMA | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
QWEN3 = LLAMA | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}


def test_smollm2() -> None:
    config = config_from_huggingface(LLAMA)
    assert (config.family, config.head_dim, config.ropes, config.tie_word_embeddings) == (
        "llama",
        64,
        (Rope(theta=1e5),),
        True,
    )


def test_features_come_from_the_family() -> None:
    assert config_from_huggingface(QWEN2).attention_bias
    assert config_from_huggingface(QWEN3).qk_norm == "head"
    assert config_from_huggingface(QWEN3).head_dim == 128


def test_biases_come_from_the_family_or_its_config() -> None:
    def biases(raw: dict[str, Any]) -> tuple[bool, bool, bool]:
        config = config_from_huggingface(raw)
        return config.attention_bias, config.output_bias, config.mlp_bias

    assert biases(LLAMA) == (False, False, False)
    assert biases(LLAMA | {"attention_bias": True}) == (True, True, False)
    assert biases(LLAMA | {"mlp_bias": True}) == (False, False, True)
    assert biases(QWEN2 | {"attention_bias": True}) == (True, False, False)  # as transformers: q, k and v
    assert biases(QWEN3 | {"attention_bias": True}) == (True, True, False)


def test_both_generations_of_rope_keys_agree() -> None:
    rope = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    older = config_from_huggingface(LLAMA | {"rope_theta": 5e5, "rope_scaling": rope})
    without = {key: value for key, value in LLAMA.items() if key != "rope_theta"}
    newer = config_from_huggingface(without | {"rope_parameters": rope | {"rope_theta": 5e5}})
    assert older == newer
    assert isinstance(newer.ropes[0].scaling, Llama3Rope)


def test_oldest_linear_rope_spelling() -> None:
    config = config_from_huggingface(LLAMA | {"rope_scaling": {"type": "linear", "factor": 2.0}})
    assert config.ropes[0].scaling == LinearRope(factor=2.0)


def test_missing_kv_heads_mean_multi_head_attention() -> None:
    assert config_from_huggingface(LLAMA | {"num_key_value_heads": None}).num_key_value_heads == 9


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        (LLAMA | {"model_type": "gemma3", "architectures": ["Gemma3ForCausalLM"]}, "gemma3"),
        (LLAMA | {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}, "mixtral"),
        (LLAMA | {"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        (LLAMA | {"num_local_experts": 8}, "MoE"),
        (QWEN3 | {"num_experts": 128}, "MoE"),
        (LLAMA | {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        (QWEN3 | {"mlp_bias": True}, "mlp_bias"),
        (MISTRAL | {"attention_bias": True}, "attention_bias"),
        (LLAMA | {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        (LLAMA | {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        (LLAMA | {"quantization_config": {"quant_method": "gptq"}}, "quantization_config.*gptq"),
        (LLAMA | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope type yarn"),
        (LLAMA | {"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "rope type dynamic"),
        (LLAMA | {"rope_parameters": {"rope_type": "longrope"}}, "rope type longrope"),
        (LLAMA | {"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "per layer type"),
        (MISTRAL | {"sliding_window": 4096}, "sliding_window = 4096"),
        (MISTRAL, "sliding_window = 4096"),
        (QWEN2 | {"use_sliding_window": True, "sliding_window": 1024}, "sliding_window = 1024"),
        (QWEN3 | {"layer_types": ["sliding_attention"], "sliding_window": 64}, "sliding_window = 64"),
    ],
)
def test_unsupported_is_refused_by_name(raw: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedModelError, match=named):
        config_from_huggingface(raw)


@pytest.mark.parametrize(
    "raw",
    [
        MISTRAL | {"sliding_window": None},
        MISTRAL | {"sliding_window": 8192},
        QWEN2 | {"use_sliding_window": False, "sliding_window": 1024},
    ],
)
def test_a_window_that_hides_nothing_is_accepted(raw: dict[str, Any]) -> None:
    config_from_huggingface(raw)


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        ({}, "neither model_type nor architectures"),
        ({key: value for key, value in LLAMA.items() if key != "vocab_size"}, "vocab_size: Field required"),
        (LLAMA | {"hidden_size": "wide"}, "hidden_size"),
        (LLAMA | {"num_hidden_layers": 2**63}, "num_hidden_layers: .* less than or equal to 10000"),
        (LLAMA | {"max_position_embeddings": 2**63}, "max_position_embeddings: .* less than or equal to"),
        (LLAMA | {"architectures": "LlamaForCausalLM"}, "architectures must be a list"),
        (LLAMA | {"num_key_value_heads": 2}, "2 KV heads do not divide 9 query heads"),
        (LLAMA | {"rope_scaling": "linear"}, "rope parameters must be an object"),
        (
            LLAMA | {"rope_scaling": {"rope_type": "linear"}},
            r"ropes\.0\.scaling\.linear\.factor: Field required",
        ),
    ],
)
def test_broken_config_names_the_key(raw: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        config_from_huggingface(raw)


def test_unknown_gguf_architecture_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModelError, match="GGUF architecture qwen3moe"):
        config_from_gguf({"general.architecture": "qwen3moe"}, GgufTensorFacts(32, True))


def test_gguf_yarn_is_refused_by_name() -> None:
    metadata = {"general.architecture": "qwen3", "qwen3.rope.scaling.type": "yarn"}
    with pytest.raises(UnsupportedModelError, match="rope type yarn"):
        config_from_gguf(metadata, GgufTensorFacts(32, True))


@pytest.mark.parametrize("value", [None, -1, 0, 1.5, 1e308, 2**63, True, "", "x", [], {}, [[]], {"a": {}}])
def test_no_value_of_a_config_ends_in_an_untyped_error(value: object) -> None:
    keys = ("head_dim", "sliding_window", "layer_types", "rope_scaling", "num_experts", *QUANTISED)
    for raw in (LLAMA, MISTRAL, QWEN2, QWEN3):
        for key in (*raw, *keys):
            try:
                config_from_huggingface(raw | {key: value})
            except (CheckpointError, UnsupportedModelError) as error:
                assert str(error)


@pytest.mark.parametrize("architecture", ["LlamaModel", "LlamaForCausalLM"])
def test_a_model_without_its_head_is_of_its_family(architecture: str) -> None:
    assert config_from_huggingface(LLAMA | {"architectures": [architecture]}).family == "llama"

"""Config readers: what is supported is read from both generations of files, the rest is refused by name."""

from __future__ import annotations

import json
from math import inf, log
from pathlib import Path
from typing import Any

import pytest

from kvfold.export.checkpoint.gguf_config import config_from_gguf
from kvfold.export.checkpoint.gguf_keys import GgufTensorFacts
from kvfold.export.model.families import config_from_huggingface, form_from_huggingface, huggingface_family
from kvfold.export.model.model_config import ModelConfig
from kvfold.export.model.rope import rope_tables
from kvfold.export.model.rope_config import LinearRope, Llama3Rope, LongRope, Rope, YarnRope
from kvfold.export.model.unsupported import QUANTISED
from kvfold.plugins.contract.errors import CheckpointError, UnsupportedModelError
from tests.export.tiny_checkpoints import CLASSES

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
GELU = LLAMA | {"hidden_activation": "gelu_pytorch_tanh"}
GEMMA2 = GELU | {"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2"}
GEMMA3 = GELU | {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text"}
PHI3 = LLAMA | {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3"}
SMOLLM3 = LLAMA | {"architectures": ["SmolLM3ForCausalLM"], "model_type": "smollm3"}
SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "vocab_size")


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
        (LLAMA | {"rope_scaling": {"rope_type": "proportional"}}, "rope type 'proportional'"),
        (QWEN2 | {"rope_scaling": {"type": "default", "mrope_section": [16, 24, 24]}}, "mrope_section"),
        (LLAMA | {"rope_parameters": {"chunked_attention": {"rope_type": "default"}}}, "chunked_attention"),
        (QWEN3 | {"layer_types": ["linear_attention"] * 30}, "linear_attention"),
        (LLAMA | {"architectures": ["MistralForCausalLM"]}, "two families: model_type llama.*mistral"),
        (
            LLAMA | {"model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"]},
            "MoE.*qwen3 or llama.*MXFP4",
        ),
        (LLAMA | {"model_type": "granitemoe", "architectures": []}, "MoE.*use a dense granite"),
        (LLAMA | {"model_type": "newmoe", "architectures": []}, "newmoe is not supported.*MoE"),
        (LLAMA | {"model_type": "deepseek_v3", "architectures": []}, "MLA.*distillate"),
        (LLAMA | {"model_type": "jamba", "architectures": []}, "state-space"),
        (LLAMA | {"model_type": "gemma3", "text_config": {}}, "multimodal.*gemma3_text"),
        (LLAMA | {"model_type": "qwen2_vl", "architectures": []}, "multimodal.*use a qwen2"),
        (LLAMA | {"model_type": "new", "architectures": [], "vision_config": {}}, "multimodal"),
        (LLAMA | {"vision_config": {"depth": 2}}, "vision_config.*multimodal"),
        (LLAMA | {"kv_lora_rank": 512}, "kv_lora_rank.*MLA"),
        (LLAMA | {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        (GEMMA3 | {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        (GEMMA3 | {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        (LLAMA | {"residual_multiplier": 0.2}, "residual_multiplier"),
        (LLAMA | {"no_rope_layers": [1, 0] * 15}, "no_rope_layers"),
        (LLAMA | {"sliding_window": 4096}, "sliding_window = 4096"),
        (LLAMA | {"use_qk_norm": True}, "use_qk_norm"),
        (MISTRAL | {"layer_types": ["sliding_attention", "full_attention"] * 15}, "layer_types"),
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
        QWEN2 | {"use_sliding_window": True, "sliding_window": 1024, "max_window_layers": 30},
        LLAMA | {"sliding_window": 8192},
        LLAMA | {"sliding_window": 1024, "use_sliding_window": False},
        LLAMA | {"layer_types": ["full_attention"] * 30, "residual_multiplier": 1.0, "num_experts": 0},
    ],
)
def test_what_changes_nothing_is_accepted(raw: dict[str, Any]) -> None:
    assert config_from_huggingface(raw).sliding_windows == (None,) * 30


@pytest.mark.parametrize(
    "raw",
    [
        MISTRAL | {"layer_types": ["sliding_attention"] * 30, "use_sliding_window": True},
        GEMMA2 | {"sliding_window_size": 4096, "_sliding_window_pattern": 6, "hidden_act": "gelu"},
        PHI3 | {"full_attn_mod": 1, "interpolate_factor": 1, "lm_head_bias": False, "mlp_bias": False},
        SMOLLM3 | {"pretraining_tp": 2, "max_window_layers": 28, "sliding_window": None},
    ],
)
def test_keys_that_transformers_ignores_too_are_ignored(raw: dict[str, Any]) -> None:
    family = huggingface_family(raw)
    read = {key: value for key, value in raw.items() if family.reads(key)}
    assert config_from_huggingface(raw) == config_from_huggingface(read | {"model_type": family.name})


def test_windows_are_the_config_s() -> None:
    windows = [config_from_huggingface(raw).sliding_windows for raw in (MISTRAL, GEMMA2, GEMMA3)]
    assert windows == [(4096,) * 30, (4096, None) * 15, ((4096,) * 5 + (None,)) * 5]
    above = QWEN2 | {"use_sliding_window": True, "sliding_window": 1024, "max_window_layers": 28}
    assert config_from_huggingface(above).sliding_windows == (None,) * 28 + (1024,) * 2


def test_layers_turn_as_the_config_says() -> None:
    scaled = {"rope_type": "linear", "factor": 8.0}
    older = config_from_huggingface(GEMMA3 | {"rope_theta": 1e6, "rope_scaling": scaled})
    full = {"full_attention": scaled | {"rope_theta": 1e6}}
    both = full | {"sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
    newer, shorter = (config_from_huggingface(GEMMA3 | {"rope_parameters": each}) for each in (both, full))
    assert older == newer == shorter
    assert newer.ropes == (Rope(theta=1e4), Rope(theta=1e6, scaling=LinearRope(factor=8.0)))
    assert newer.layer_ropes == ((0,) * 5 + (1,)) * 5
    unturned = config_from_huggingface(SMOLLM3)
    assert (unturned.ropes, unturned.layer_ropes[:5]) == (
        (Rope(theta=1e5), Rope(partial_rotary_factor=0.0)),
        (0, 0, 0, 1, 0),
    )


def test_dynamic_rope_is_plain_up_to_the_context() -> None:
    scaled = LLAMA | {"rope_scaling": {"type": "dynamic", "factor": 4.0}}
    assert config_from_huggingface(scaled) == config_from_huggingface(LLAMA)


@pytest.mark.parametrize(("context", "divisor"), [(4096, 1.0), (131072, 4.0)])
def test_longrope_takes_the_list_of_the_model_s_context(context: int, divisor: float) -> None:
    factors = {"short_factor": [1.0] * 32, "long_factor": [4.0] * 32}
    for kind in ({"type": "su"}, {"type": "yarn"}, {"rope_type": "longrope"}):
        raw = PHI3 | {"max_position_embeddings": context, "rope_scaling": factors | kind}
        config = config_from_huggingface(raw)
        (rope,) = config.ropes
        assert isinstance(rope.scaling, LongRope)
        assert rope.scaling.divisors(context) == (divisor,) * 32
        assert rope.scaling.magnitude(context) == pytest.approx((1 + log(context / 4096) / log(4096)) ** 0.5)


def test_defaults_are_those_of_transformers(tmp_path: Path) -> None:
    """A saved config leaves out what is the default of all families; a written one may leave out any."""
    for name, (config_class, _) in CLASSES.items():
        whole = config_class().to_dict()
        left_out = {key: whole[key] for key in (*SIZES, "model_type")}
        assert config_from_huggingface(whole) == config_from_huggingface(left_out), name
        config_class().save_pretrained(tmp_path)
        saved = json.loads((tmp_path / "config.json").read_text())
        assert config_from_huggingface(saved) == config_from_huggingface(whole), name


def test_a_bundle_s_older_config_is_read() -> None:
    config = config_from_huggingface(QWEN3)
    older = config.model_dump(exclude={"ropes", "layer_ropes", "sliding_windows"}) | {
        "rope_theta": 100000.0,
        "rope_scaling": None,
        "qk_norm": True,
    }
    assert ModelConfig.model_validate(older) == config


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
        (LLAMA | {"rope_scaling": {"factor": 4.0}}, "rope parameters name no rope_type"),
        (PHI3 | {"partial_rotary_factor": 0.52}, "RoPE turns 33 of 64 channels"),
        (
            PHI3 | {"rope_scaling": {"type": "longrope", "short_factor": [1], "long_factor": [1]}},
            "1 divisors for 32",
        ),
        (
            QWEN3 | {"layer_types": ["sliding_attention"]},
            "layer_types must be a list with a name for each of 30",
        ),
        (QWEN3 | {"layer_types": ["sliding_attention"] * 30}, "but use_sliding_window is off"),
        (
            GEMMA2 | {"sliding_window": None, "layer_types": ["sliding_attention"] * 30},
            "there is no sliding_window",
        ),
        (GEMMA2 | {"sliding_window": "wide"}, "sliding_window must be a number"),
        (GEMMA2 | {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar must be positive"),
        (SMOLLM3 | {"no_rope_layers": [0, 1]}, "no_rope_layers must be a list"),
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


@pytest.mark.parametrize("value", [None, -1, 0, 1.5, 1e308, 2**63, True, "", "x", [], {}, [[]], {"a": {}}])
def test_no_value_of_a_config_ends_in_an_untyped_error(value: object) -> None:
    keys = ("head_dim", "sliding_window", "layer_types", "rope_scaling", "num_experts", *QUANTISED)
    raws = (LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA2, GEMMA3, PHI3, SMOLLM3)
    for raw in (*raws, LLAMA | {"model_type": "granite", "architectures": []}):
        family = huggingface_family(raw)
        for key in {*raw, *keys, *family.keys, "rope_parameters", "original_max_position_embeddings"}:
            try:
                config_from_huggingface(raw | {key: value})
                form_from_huggingface(raw | {key: value})
            except (CheckpointError, UnsupportedModelError) as error:
                assert str(error)


@pytest.mark.parametrize("value", [None, -1, 0, 1e308, 2**63, 10**400, True, "x", [], {}, inf])
@pytest.mark.parametrize("kind", ["linear", "llama3", "yarn", "longrope"])
def test_no_parameter_of_rope_ends_in_an_untyped_error(kind: str, value: object) -> None:
    whole = {"rope_type": kind, "factor": 4.0, "original_max_position_embeddings": 4096}
    whole |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    whole |= {"short_factor": [1.0] * 32, "long_factor": [4.0] * 32}
    fields = {
        field for scheme in (LinearRope, Llama3Rope, YarnRope, LongRope) for field in scheme.model_fields
    }
    for key in fields | {"rope_theta", "partial_rotary_factor"}:
        try:
            config = config_from_huggingface(PHI3 | {"rope_scaling": whole | {key: value}})
            cos, _ = rope_tables(config, config.ropes[0], 2)
            assert cos.shape == (2, 32)
        except (CheckpointError, UnsupportedModelError) as error:
            assert str(error)


@pytest.mark.parametrize("architecture", ["LlamaModel", "LlamaForCausalLM"])
def test_a_model_without_its_head_is_of_its_family(architecture: str) -> None:
    assert config_from_huggingface(LLAMA | {"architectures": [architecture]}).family == "llama"

"""Family: what is known of a model family before one of its configs is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from kvfold.export.model.model_config import NormPlacement, QkNorm
from kvfold.plugins.contract.errors import CheckpointError

Metadata = Mapping[str, Any]
# Which layers have the config's window: those that `layer_types` names, or else ...
WindowLayers = Literal[
    "none",
    "all",
    "from_max_window_layers",  # from that index on, where `use_sliding_window` says so
    "without_rope",  # those that do not turn, where `use_sliding_window` says so
    "all_but_each_last",  # of `sliding_window_pattern` layers
]
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
ROPE_KEYS = ("rope_theta", "rope_scaling", "rope_parameters", "original_max_position_embeddings")
# Hugging Face's defaults in most families.
EVERYWHERE: Metadata = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False, "hidden_act": "silu"}
LARGE = 1e300  # neither infinity nor NaN is below it, nor a whole number that is no float
COMMON_KEYS = frozenset((*SAME_KEYS, *ROPE_KEYS, "num_key_value_heads", "head_dim", "tie_word_embeddings"))


@dataclass(frozen=True)
class Family:
    """One supported family.

    Attributes:
        name: Hugging Face's `model_type`, and the name in ModelConfig.
        architecture: Hugging Face's class, as in `architectures`.
        gguf_architecture: `general.architecture` of its GGUF files; None where llama.cpp files the
            family under another one.
        gguf_interleaved: llama.cpp stores Q and K rows for interleaved RoPE pairs.
        backbone: Hugging Face's class without the head; `save_pretrained` of one writes no prefix, no head.
        attention_bias: q, k and v always have a bias.
        bias_keys: keys of its config that give it biases: `attention_bias` to q, k, v and o_proj, `mlp_bias`
            to gate_proj, up_proj and down_proj.
        qk_norm: whether q and k pass an RMSNorm, and over what.
        norm_placement: where a block has its norms.
        fused, norm_offset: as in StoredForm.
        scaled_embedding: what the embedding gives is multiplied with sqrt(hidden_size).
        window_layers: which layers have the config's window.
        keys: what is read of its config beside COMMON_KEYS and `bias_keys`; another key that would change the
            computation is refused.
        defaults: Hugging Face's, for what a config may leave out, where they are not those of EVERYWHERE.
    """

    name: str
    architecture: str
    gguf_architecture: str | None
    gguf_interleaved: bool = False
    backbone: str = ""
    attention_bias: bool = False
    bias_keys: tuple[str, ...] = ()
    qk_norm: QkNorm | None = None
    norm_placement: NormPlacement = "pre"
    fused: bool = False
    norm_offset: float = 0.0
    scaled_embedding: bool = False
    window_layers: WindowLayers = "none"
    keys: tuple[str, ...] = ("hidden_act",)
    defaults: Metadata = field(default_factory=dict)

    @property
    def classes(self) -> tuple[str, str]:
        """Hugging Face's classes that are saved as this family: with the head and without."""
        return self.architecture, self.backbone or self.architecture.replace("ForCausalLM", "Model")

    def reads(self, key: str) -> bool:
        """Whether a key of its config has a part in the ModelConfig."""
        return key in COMMON_KEYS or key in self.bias_keys or key in self.keys

    def known(self, raw: Metadata) -> Metadata:
        """What a config says to this family: the keys it reads, with defaults for those left out."""
        said = {key: value for key, value in raw.items() if self.reads(key)}
        return {**EVERYWHERE, **self.defaults, **said}


def number(declared: Metadata, key: str) -> float | None:
    """A number of a config; None where it has none.

    Raises:
        CheckpointError: it is something else.
    """
    value = declared.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < LARGE:
        raise CheckpointError(f"config.json: {key} must be a number, not {value!r:.80}")
    return value


def positive(declared: Metadata, key: str) -> float | None:
    """As `number`; one that is not positive is refused too."""
    value = number(declared, key)
    if value is not None and value <= 0:
        raise CheckpointError(f"config.json: {key} must be positive, not {value!r:.80}")
    return value


def count(declared: Metadata, key: str) -> int | None:
    """As `positive`, of whole numbers."""
    value = positive(declared, key)
    if value is not None and not isinstance(value, int):
        raise CheckpointError(f"config.json: {key} must be a whole number, not {value!r:.80}")
    return value

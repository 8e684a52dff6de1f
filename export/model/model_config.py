"""ModelConfig: the unfolded model, in Hugging Face's terms, whatever file it came from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kvfold.plugins.contract.attention_shape import AttentionShape
from kvfold.plugins.contract.record import Record


class LinearRope(Record):
    """Positions divided by `factor` (position interpolation, arXiv 2306.15595)."""

    rope_type: Literal["linear"] = "linear"
    factor: float = Field(gt=0)


class Llama3Rope(Record):
    """Llama 3.1: low frequencies divided by `factor`, high ones kept, a ramp in between."""

    rope_type: Literal["llama3"] = "llama3"
    factor: float = Field(gt=0)
    low_freq_factor: float = Field(gt=0)
    high_freq_factor: float = Field(gt=0)
    original_max_position_embeddings: int = Field(gt=0)


RopeScaling = Annotated[LinearRope | Llama3Rope, Field(discriminator="rope_type")]


class ModelConfig(Record):
    """Everything the decoder needs to know of a checkpoint.

    Attributes:
        family: the declaration in `families.py` that the checkpoint matched.
        attention_bias: whether q, k and v have a bias (qwen2).
        output_bias: whether o_proj has one (llama and qwen3, where their config says `attention_bias`).
        mlp_bias: whether gate_proj, up_proj and down_proj have one (llama).
        qk_norm: whether q and k pass an RMSNorm per head before RoPE (qwen3).
    """

    family: str
    vocab_size: int = Field(ge=1)
    hidden_size: int = Field(ge=1)
    intermediate_size: int = Field(ge=1)
    num_hidden_layers: int = Field(ge=1, le=10_000)
    num_attention_heads: int = Field(ge=1)
    num_key_value_heads: int = Field(ge=1)
    head_dim: int = Field(ge=2)
    rms_norm_eps: float = Field(gt=0)
    rope_theta: float = Field(gt=0)
    rope_scaling: RopeScaling | None = None
    max_position_embeddings: int = Field(ge=1, le=2**31 - 1)
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    tie_word_embeddings: bool = False

    @property
    def attention_shape(self) -> AttentionShape:
        """What a preset needs to build a FoldPlan for this model."""
        return AttentionShape(
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
        )

"""ModelConfig: the unfolded model in normal form, in Hugging Face's terms, whatever file it came from."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from kvfold.export.model.rope_config import Positive, Rope
from kvfold.plugins.contract.attention_shape import AttentionShape
from kvfold.plugins.contract.record import Record

NormPlacement = Literal["pre", "post", "both"]
Activation = Literal["silu", "gelu_tanh"]
QkNorm = Literal["head", "projection"]


class ModelConfig(Record):
    """Everything the decoder needs to know of a checkpoint whose weights are in normal form.

    What a family computes that equals a change of weights (multipliers, norms with 1 + weight, fused tensors,
    the order of a head's channels) is done where the checkpoint is loaded and is not told here.

    Attributes:
        family: the declaration in `families.py` that the checkpoint matched.
        ropes: the kinds of RoPE that layers have.
        layer_ropes: by layer, which of `ropes` it turns with; all the first where none is said.
        sliding_windows: by layer, tokens visible to a query, itself included; None is all. They are the
            checkpoint's own; none is longer than the context or of the same length.
        attention_bias: whether q, k and v have a bias (qwen2).
        output_bias: whether o_proj has one (llama and qwen3, where their config says `attention_bias`).
        mlp_bias: whether gate_proj, up_proj and down_proj have one (llama).
        norm_placement: norms before attention and MLP (`pre`), after them (`post`, olmo2), or `both` (gemma).
        hidden_act: what the MLP's gate passes; `gelu_tanh` is GELU's approximation by tanh.
        qk_norm: whether q and k pass an RMSNorm before RoPE, each `head` by itself (qwen3) or the whole
            `projection` (olmo2).
        attention_scale: factor on q.k; None is head_dim ** -0.5.
        attention_softcap: logits of attention become softcap * tanh(logits / softcap); 0 is off.
        final_softcap: the same of the head's logits.
    """

    family: str
    vocab_size: int = Field(ge=1)
    hidden_size: int = Field(ge=1)
    intermediate_size: int = Field(ge=1)
    num_hidden_layers: int = Field(ge=1, le=10_000)
    num_attention_heads: int = Field(ge=1)
    num_key_value_heads: int = Field(ge=1)
    head_dim: int = Field(ge=2, le=65_536)
    rms_norm_eps: Positive
    ropes: tuple[Rope, ...] = Field(min_length=1)
    layer_ropes: tuple[int, ...] = Field(
        default_factory=lambda known: (0,) * known.get("num_hidden_layers", 0)
    )
    sliding_windows: tuple[Annotated[int, Field(ge=1)] | None, ...] = Field(
        default_factory=lambda known: (None,) * known.get("num_hidden_layers", 0)
    )
    max_position_embeddings: int = Field(ge=1, le=2**31 - 1)
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    norm_placement: NormPlacement = "pre"
    hidden_act: Activation = "silu"
    qk_norm: QkNorm | None = None
    attention_scale: Positive | None = None
    attention_softcap: float = Field(default=0.0, ge=0)
    final_softcap: float = Field(default=0.0, ge=0)
    tie_word_embeddings: bool = False

    @model_validator(mode="before")
    @classmethod
    def _read_older(cls, values: Any) -> Any:
        """Older bundles say rope_theta, rope_scaling, and whether there is a QK-norm."""
        if not isinstance(values, dict) or "rope_theta" not in values:
            return values
        rest = {key: value for key, value in values.items() if key not in ("rope_theta", "rope_scaling")}
        rope = {"theta": values["rope_theta"], "scaling": values.get("rope_scaling")}
        return rest | {"ropes": (rope,), "qk_norm": "head" if values.get("qk_norm") else None}

    @model_validator(mode="after")
    def _check_layers(self) -> Self:
        for name in ("layer_ropes", "sliding_windows"):
            count = len(getattr(self, name))
            if count != self.num_hidden_layers:
                raise ValueError(f"{name} has {count} entries for {self.num_hidden_layers} layers")
        if not all(0 <= kind < len(self.ropes) for kind in self.layer_ropes):
            raise ValueError(f"layer_ropes names one that ropes, {len(self.ropes)} of them, does not have")
        for rope in self.ropes:
            rope.check_turning(self.head_dim)
        return self

    @property
    def attention_shape(self) -> AttentionShape:
        """What a preset needs to build a FoldPlan for this model."""
        return AttentionShape(
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
            sliding_windows=self.sliding_windows,
            layer_ropes=self.layer_ropes,
        )

    @property
    def logit_scale(self) -> float:
        """Factor on q.k before the softmax."""
        return self.head_dim**-0.5 if self.attention_scale is None else self.attention_scale

"""The attention of the unfolded model: heads, what each layer sees, which RoPE turns it."""

from __future__ import annotations

from dataclasses import dataclass

BASELINE_ITEMSIZE = 2  # bfloat16, in which checkpoints are published and served


@dataclass(frozen=True)
class AttentionShape:
    """What the checkpoint declares of its attention.

    Attributes:
        num_hidden_layers: decoder layers.
        num_attention_heads: query heads of a layer.
        num_key_value_heads: KV heads of a layer.
        head_dim: channels of a head.
        sliding_windows: tokens that each layer sees, the current one included; None is global. Empty where
            every layer is.
        layer_ropes: which of the model's RoPEs turns each layer. Empty where one turns them all.
    """

    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    sliding_windows: tuple[int | None, ...] = ()
    layer_ropes: tuple[int, ...] = ()

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The checkpoint's own window of every layer."""
        return self.sliding_windows or (None,) * self.num_hidden_layers

    @property
    def ropes(self) -> tuple[int, ...]:
        """The RoPE of every layer."""
        return self.layer_ropes or (0,) * self.num_hidden_layers

    def kv_bytes(self, context_length: int) -> int:
        """KV bytes of one sequence in the unfolded model: the baseline.

        The cache is bf16, and layers with a window keep no more tokens than it: a runtime that knows the
        checkpoint's own windows needs no more.
        """
        per_token = 2 * self.num_key_value_heads * self.head_dim * BASELINE_ITEMSIZE
        held = (min(context_length, window or context_length) for window in self.windows)
        return per_token * sum(held)

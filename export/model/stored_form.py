"""StoredForm: how a file's tensors differ from the normal form that ModelConfig and the decoder know."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StoredForm:
    """What a family computes beside the decoder, and a change of its weights makes up for.

    Attributes:
        fused: q, k and v are one tensor `qkv_proj`, gate and up one `gate_up_proj` (phi3).
        norm_offset: added to the weight of every RMSNorm (gemma's 1 + weight).
        embedding_multiplier: on what the embedding gives; the head, where it is the same tensor, does
            without it.
        residual_multiplier: on what attention and MLP add to the residual stream.
        logits_multiplier: on what the head gives.
    """

    fused: bool = False
    norm_offset: float = 0.0
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logits_multiplier: float = 1.0

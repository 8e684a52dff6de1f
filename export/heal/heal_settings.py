"""What a user may set of healing by training."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from kvfold.plugins.contract.record import Record


class HealSettings(Record):
    """Dials of healing; the text it trains on is the recipe's `heal.text`.

    Attributes:
        layerwise_tokens: tokens of step A, which teaches each attention block by itself; 0 skips it.
        tokens: tokens of step B, which teaches the whole model; 0 skips it. More tokens than the text
            has go over it again, in another order.
        int8_tokens: tokens of step C, which teaches the whole model to round as it is deployed; 0 skips it.
        seconds: the training takes so long in place of so many tokens, from the fit to the last judgement.
            Steps share the time as their tokens would, and each one's rate falls to its end. Some of the text
            is held out to judge by, before and after, and the better weights are kept. None counts tokens.
        batch_tokens: tokens per update, rounded down to whole sequences, at least one. Small ones learn
            more from a token: on SmolLM2 the layer-wise loss came to 0.40 after 51,000 tokens in batches of
            1,024, and to 0.38 after 400,000 in batches of 4,096. (Not that alone differed: the first had
            sequences of 512 for 1,024 and ranks given out by need, so it began at 0.47 in place of 0.50.)
        layerwise_learning_rate: peak of step A's rate (Muon and AdamW, no weight decay).
        learning_rate: peak of step B's rate. The best one depends on how much is to be mended. SmolLM2 under
            the plan of the recipe `compact`, one order of texts, updates 61 to 73 of 2,048 tokens: 0.253 nat
            in the mean with a peak of 1.5e-4, 0.236 with 3e-4, 0.217 with 6e-4, 0.208 with 1.2e-3. Under
            `character`, which begins at 2 nat in closed form: updates 30 to 39 of 2,048 tokens at a constant
            rate came to 1.74 with 3e-4, 1.75 with 6e-4, 2.09 with 1.2e-3 and 6.7 with 3e-3.
        int8_learning_rate: peak of step C's rate; low, since the model is nearly where it should be.
        final_rate: the rate at a step's end, a share of its peak.
        warmup_steps: updates over which a rate rises to its peak; it then falls along a cosine.
        clip: largest L2 norm of the gradient over all trained tensors.
        scored: share of the positions, 0..1, at which steps B and C compare distributions. The comparison
            at one position costs as much as a quarter of the layers, and neighbours teach alike.
        rank: of what is learned on top of the fold's factors in W_Q and W_O, and in W_K and W_V where heads
            stay as they were; a mean over these matrices. None learns and stores them whole. An adapter of
            SmolLM2-135M stays below 12 MB with 56 where banks have one head, with 47 where most keep theirs.
        seed: of the order of sequences and of the scored positions.
        checkpoint_seconds: between two checkpoints; it decides nothing but what a kill costs.
    """

    layerwise_tokens: int = Field(default=300_000, ge=0)
    tokens: int = Field(default=1_000_000, ge=0)
    int8_tokens: int = Field(default=0, ge=0)
    seconds: float | None = Field(default=None, ge=1, allow_inf_nan=False)
    batch_tokens: int = Field(default=1_024, ge=1)
    layerwise_learning_rate: float = Field(default=1e-3, gt=0)
    learning_rate: float = Field(default=6e-4, gt=0)
    int8_learning_rate: float = Field(default=3e-5, gt=0)
    final_rate: float = Field(default=0.1, ge=0, le=1)
    warmup_steps: int = Field(default=20, ge=0)
    clip: float = Field(default=0.5, gt=0)
    scored: float = Field(default=0.25, gt=0, le=1)
    rank: int | None = Field(default=56, ge=1)
    seed: int = Field(default=0, ge=0)
    checkpoint_seconds: float = Field(default=120.0, ge=0)

    @model_validator(mode="after")
    def _check_seconds(self) -> Self:
        if self.seconds is not None and not (self.layerwise_tokens or self.tokens or self.int8_tokens):
            raise ValueError(
                f"seconds is {self.seconds:g}, which the steps share by their tokens, yet all of these are "
                "0; give a step some, for example tokens: 1"
            )
        return self

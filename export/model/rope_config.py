"""How keys and queries turn with their position: what a config says of RoPE, without a table of it."""

from __future__ import annotations

from math import log, sqrt
from typing import Annotated, Literal

from pydantic import Field

from kvfold.plugins.contract.record import Record

Positive = Annotated[float, Field(gt=0, lt=1e38)]  # of float32, which tables are made in
Turns = Annotated[float, Field(ge=1e-9, le=1e9)]
Finite = Annotated[float, Field(gt=-1e38, lt=1e38)]


class LinearRope(Record):
    """Positions divided by `factor` (position interpolation, arXiv 2306.15595)."""

    rope_type: Literal["linear"] = "linear"
    factor: Positive


class Llama3Rope(Record):
    """Llama 3.1: low frequencies divided by `factor`, high ones kept, a ramp in between."""

    rope_type: Literal["llama3"] = "llama3"
    factor: Positive
    low_freq_factor: Positive
    high_freq_factor: Positive
    original_max_position_embeddings: int = Field(gt=0)


class YarnRope(Record):
    """YaRN (arXiv 2309.00071): a ramp over channel pairs, and longer keys and queries.

    Attributes:
        factor: low frequencies are divided by it.
        original_max_position_embeddings: context before it was extended, in tokens.
        beta_fast, beta_slow: pairs that turn more often than `beta_fast` in it are kept, those that turn
            less often than `beta_slow` divided.
        truncate: whether the ramp starts and ends at whole pairs.
        attention_factor: what cos and sin are multiplied with; None follows from the factor.
        mscale, mscale_all_dim: how it follows, where both are given (DeepSeek).
    """

    rope_type: Literal["yarn"] = "yarn"
    factor: Positive
    original_max_position_embeddings: int = Field(gt=0)
    beta_fast: Turns = 32.0
    beta_slow: Turns = 1.0
    truncate: bool = True
    attention_factor: Positive | None = None
    mscale: Finite | None = None
    mscale_all_dim: Finite | None = None

    @property
    def magnitude(self) -> float:
        """What cos and sin are multiplied with."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._mscale(self.mscale) / self._mscale(self.mscale_all_dim)
        return self._mscale(1.0)

    def _mscale(self, weight: float) -> float:
        return 1.0 if self.factor <= 1 else 0.1 * weight * log(self.factor) + 1.0


class LongRope(Record):
    """LongRoPE (arXiv 2402.13753): a divisor for each frequency, in two lists, for long and short contexts.

    The model's context decides which, once: keys are cached as they turned, so a sequence cannot change
    its frequencies while it grows. `magnitude` is as Hugging Face's.

    Attributes:
        short_factor, long_factor: divisors, one for each pair that turns.
        original_max_position_embeddings: contexts up to it take `short_factor`, in tokens.
        extension: context after training over that before; None is max_position_embeddings over it.
        attention_factor: what cos and sin are multiplied with; None follows from the extension.
    """

    rope_type: Literal["longrope"] = "longrope"
    short_factor: tuple[Positive, ...]
    long_factor: tuple[Positive, ...]
    original_max_position_embeddings: int = Field(gt=1)
    extension: Positive | None = None
    attention_factor: Positive | None = None

    def divisors(self, context: int) -> tuple[float, ...]:
        """The list that a model of `context` tokens takes."""
        return self.long_factor if context > self.original_max_position_embeddings else self.short_factor

    def magnitude(self, context: int) -> float:
        """What cos and sin are multiplied with in a model of `context` tokens."""
        if self.attention_factor is not None:
            return self.attention_factor
        extension = self.extension or context / self.original_max_position_embeddings
        if extension <= 1:
            return 1.0
        return sqrt(1 + log(extension) / log(self.original_max_position_embeddings))


RopeScaling = Annotated[LinearRope | Llama3Rope | YarnRope | LongRope, Field(discriminator="rope_type")]


class Rope(Record):
    """How the keys and queries of one kind of layer turn.

    Attributes:
        theta: base of the frequencies.
        scaling: how they are stretched to longer contexts.
        partial_rotary_factor: share of a head's channels that turns; 0 is a layer without positions.
    """

    theta: Positive = 10_000.0
    scaling: RopeScaling | None = None
    partial_rotary_factor: float = Field(default=1.0, ge=0, le=1)

    def rotary_dim(self, head_dim: int) -> int:
        """Channels of a head that turn."""
        return int(head_dim * self.partial_rotary_factor)

    def check_turning(self, head_dim: int) -> None:
        """Raise ValueError where heads of `head_dim` channels cannot turn so."""
        size = self.rotary_dim(head_dim)
        if size % 2:
            raise ValueError(f"RoPE turns {size} of {head_dim} channels; they must be pairs")
        if isinstance(self.scaling, YarnRope) and self.theta <= 1:
            raise ValueError(f"theta is {self.theta}; yarn needs one above 1")
        if isinstance(self.scaling, LongRope):
            for name in ("short_factor", "long_factor"):
                divisors = len(getattr(self.scaling, name))
                if divisors != size // 2:
                    raise ValueError(
                        f"{name} has {divisors} divisors for {size // 2} channel pairs that turn"
                    )

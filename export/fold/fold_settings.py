"""What a user may set of a fold."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from kvfold.plugins.contract.record import Record


class FoldSettings(Record):
    """Dials of the fold.

    Attributes:
        ridge: pull of every regression towards the algebraic solution, relative to the mean power
            of its inputs; higher suits less calibration text.
        rope_slots: `fitted` lets a shared key spend its channel pairs on the RoPE frequencies that matter;
            `even` gives each frequency one. Fitted ones keep more of the logits' power, but without healing
            SmolLM2 was no better for it (docs/folding.md).
    """

    ridge: float = Field(default=1e-3, gt=0)
    rope_slots: Literal["fitted", "even"] = "even"

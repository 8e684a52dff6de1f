"""What a user may set of a fold."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class FoldSettings(BaseModel):
    """Dials of the fold.

    Attributes:
        ridge: pull of every regression towards the algebraic solution, relative to the mean power
            of its inputs; higher suits less calibration text.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ridge: float = Field(default=1e-3, gt=0)

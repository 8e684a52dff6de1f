"""What a user may set of the search for a plan."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from kvfold.plugins.contract.record import Record

Window = Annotated[int, Field(ge=1)]


class SearchSettings(Record):
    """Dials of the search.

    Attributes:
        sliding_windows: windows to choose from for each local layer: tokens that it sees, the current one
            included. On text that is no longer than a window it costs nothing.
        sink_size: first tokens that they always see.
        kl_tokens: tokens of the text that no fold is computed from; KL is measured on a quarter of their
            positions. The other tokens are what the folds are computed from.
        prompts: prompts that hide a code and ask for it; the answers' likelihood says which layers retrieve.
        prompt_length: tokens of such a prompt.
        measured_window: tokens that a local layer sees at most while an answer's likelihood is measured, so
            that short prompts reach beyond it.
        max_retrieval_loss: nat. No further layer becomes global once an answer's NLL is at most so far
            above the unfolded model's.
        retrieval_weight: nat of KL a token that a nat of an answer's NLL counts as.
        negligible_int8_kl: nat a token. An int8 cache that costs no more counts as free and is never kept
            wider, nor are answers asked of it; rounding in bfloat16 alone moves a measurement by some 0.001.
        plans: whole plans that are folded and measured, at most.
    """

    sliding_windows: tuple[Window, ...] = Field(default=(32, 64, 128, 256, 512), min_length=1)
    sink_size: int = Field(default=4, ge=0)
    kl_tokens: int = Field(default=8_192, ge=1)
    prompts: int = Field(default=8, ge=1)
    prompt_length: int = Field(default=1_152, ge=128)
    measured_window: int = Field(default=512, ge=1)
    max_retrieval_loss: float = Field(default=0.5, ge=0)
    retrieval_weight: float = Field(default=0.01, ge=0)
    negligible_int8_kl: float = Field(default=0.003, ge=0)
    plans: int = Field(default=3, ge=1)

    @model_validator(mode="after")
    def _check_lengths(self) -> SearchSettings:
        if self.prompt_length < 2 * self.measured_window:
            raise ValueError(
                f"prompt_length is {self.prompt_length}, less than twice measured_window "
                f"{self.measured_window}: codes would stand within it; lengthen the one or shorten the other"
            )
        return self

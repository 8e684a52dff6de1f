"""The recipe's section `evaluate`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kvfold.pipeline.recipe.recipe_sections import TextSection
from kvfold.plugins.contract.record import Record

SHIPPED_PASSAGES = "shipped"


class RetrievalSection(Record):
    """Codes hidden in long prompts, and asked for at their ends.

    Attributes:
        lengths: tokens of a prompt with its answer; those above the model's context are left out.
        depths: where the asked code stands: 0 is the beginning of the prompt's text, 1 its end.
        trials: prompts of each task, length and depth.
        keys: codes in a prompt of the multi-key task, the asked one included.
    """

    lengths: tuple[Annotated[int, Field(ge=128)], ...] = (512, 2_048)
    depths: tuple[Annotated[float, Field(ge=0, le=1)], ...] = (0.1, 0.4, 0.9)
    trials: int = Field(default=5, ge=1)
    keys: int = Field(default=4, ge=2, le=64)


class EvaluateSection(TextSection):
    """What `kvfold eval` measures. The text is read in windows of each length, all of it at each.

    Attributes:
        lengths: windows whose perplexity is measured; those above `sequence_length` are left out, and
            where none is left it is measured in windows of that.
        kl_tokens: how many of the tokens are compared one by one with the original, in windows of
            `sequence_length`.
        seed: not that of training text, which would be the same where its sizes are.
        retrieval: codes to find in long prompts.
        last_words: passages whose last word is asked for: `shipped`, a `.txt` file with one a line, or a
            `.jsonl` file of {"text": ...}.
        openers: short chats, of 200, to which a chat model replies; its slips are counted.
    """

    tokens: int = Field(default=8_192, ge=1)
    sequence_length: int = Field(default=2_048, ge=2)
    seed: int = Field(default=4, ge=0)
    lengths: tuple[Annotated[int, Field(ge=2)], ...] = (512, 1_024, 2_048, 4_096, 8_192)
    kl_tokens: int = Field(default=8_192, ge=1)
    retrieval: RetrievalSection = RetrievalSection()
    last_words: str = Field(default=SHIPPED_PASSAGES, min_length=1)
    openers: int = Field(default=200, ge=1, le=200)

"""What an evaluation reads: windows of text, prompts with codes, passages; all made before the first pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

import numpy as np

from kvfold.pipeline.quality.evaluate.haystacks import HaystackCell, write_cells
from kvfold.pipeline.quality.evaluate.last_words import describe_passages, read_passages
from kvfold.pipeline.quality.evaluate.question import Prompt
from kvfold.pipeline.quality.likelihood import cut_windows
from kvfold.pipeline.recipe.evaluate_section import EvaluateSection
from kvfold.runtime.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Material:
    """Texts and prompts as tokens.

    Attributes:
        windows: int64 [windows, length] by length, for perplexity; the same text at each length.
        compared: int64 [windows, length], compared token by token with the original.
        cells: prompts that ask for a code.
        passages: prompts that ask for a last word.
        text, passages_text: where they came from, as a reader is told.
    """

    windows: dict[int, np.ndarray]
    compared: np.ndarray
    cells: list[HaystackCell]
    passages: list[Prompt]
    text: str
    passages_text: str

    @property
    def prompts(self) -> Iterator[Prompt]:
        """Every prompt that asks for something."""
        yield from (haystack.prompt for cell in self.cells for haystack in cell.haystacks)
        yield from self.passages

    @property
    def longest(self) -> int:
        """Tokens of the longest window or prompt."""
        prompts = (len(prompt.token_ids) for prompt in self.prompts)
        return max(max(self.windows), len(self.compared[0]), *prompts)

    def tokens(self, subjects: int, candidates: int) -> int:
        """Tokens of all passes; those of the comparison are the candidates' and the original's."""
        read = sum(found.size for found in self.windows.values())
        if self.compared.shape[1] in self.windows:
            read -= self.compared.size  # whose perplexity comes with the comparison
        read += sum(len(prompt.token_ids) for prompt in self.prompts)
        total: int = subjects * read + (candidates + 1) * self.compared.size
        return total


def prepare_material(
    section: EvaluateSection, sequences: np.ndarray, tokenizer: Tokenizer, context: int
) -> Material:
    """The recipe's material from its text, tokens int64 [N, L]; nothing is longer than `context` tokens.

    Raises:
        CalibrationError: the passages' file cannot be read.
        RecipeError: a retrieval length does not hold its codes, or there are no passages.
    """
    length = sequences.shape[1]
    lengths = [each for each in section.lengths if each <= length] or [length]
    return Material(
        windows={each: cut_windows(sequences, each) for each in lengths},
        compared=sequences[: ceil(section.kl_tokens / length)],
        cells=write_cells(section.retrieval, context, tokenizer, section.seed),
        passages=read_passages(section.last_words, tokenizer, context),
        text=section.description,
        passages_text=describe_passages(section.last_words),
    )

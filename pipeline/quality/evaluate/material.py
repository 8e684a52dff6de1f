"""What an evaluation reads: text in windows, codes in haystacks, passages, openers; made before any pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

import numpy as np

from kvfold.export.search.question import Question
from kvfold.pipeline.quality.evaluate.haystacks import HaystackCell, write_cells
from kvfold.pipeline.quality.evaluate.last_words import describe_passages, read_passages
from kvfold.pipeline.quality.evaluate.openers import Opener, read_openers
from kvfold.pipeline.quality.evaluate.slips import OWN, REPLY_TOKENS
from kvfold.pipeline.recipe.evaluate_section import EvaluateSection
from kvfold.runtime.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Material:
    """Texts and questions as tokens.

    Attributes:
        sequences: int64 [N, L], for perplexity.
        lengths: of the windows that it is measured in; the same text at each length.
        compared: the first of the sequences, compared token by token with the original.
        cells: questions that ask for a code.
        passages: questions that ask for a last word.
        openers: chats to reply to; empty where the model has no chat template.
        text, passages_text: where they came from, as a reader is told.
    """

    sequences: np.ndarray
    lengths: list[int]
    compared: np.ndarray
    cells: list[HaystackCell]
    passages: list[Question]
    openers: list[Opener]
    text: str
    passages_text: str

    @property
    def questions(self) -> Iterator[Question]:
        """For codes, then for last words."""
        yield from (haystack.question for cell in self.cells for haystack in cell.haystacks)
        yield from self.passages

    @property
    def longest(self) -> int:
        """Tokens of the longest window or question."""
        questions = (len(question.token_ids) for question in self.questions)
        width: int = self.sequences.shape[1]
        return max(width, *questions)

    def tokens(self, subjects: int, candidates: int) -> int:
        """Tokens of all passes; those of the comparison are the candidates' and the original's."""
        count, length = self.sequences.shape
        # Of each compared sequence the first window of every length is read with the comparison.
        read: int = sum(each * (count * (length // each) - len(self.compared)) for each in self.lengths)
        read += sum(len(question.token_ids) for question in self.questions)
        answered = (*self.openers, *self.openers[::OWN], *self.openers[::OWN])
        replies = sum(len(opener.token_ids) + REPLY_TOKENS for opener in answered)
        total: int = subjects * read + (candidates + 1) * self.compared.size + replies
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
        sequences=sequences,
        lengths=lengths,
        compared=sequences[: ceil(section.kl_tokens / length)],
        cells=write_cells(section.retrieval, context, tokenizer, section.seed),
        passages=read_passages(section.last_words, tokenizer, context),
        openers=read_openers(section.openers, tokenizer, context - REPLY_TOKENS),
        text=section.description,
        passages_text=describe_passages(section.last_words),
    )

"""Last words: passages whose last word only the whole passage tells, as in LAMBADA (arXiv 1606.06031)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from string import punctuation, whitespace

from kvfold.export.search.question import Question, make_question
from kvfold.pipeline.recipe.evaluate_section import SHIPPED_PASSAGES
from kvfold.pipeline.texts.documents import read_documents
from kvfold.plugins.contract.errors import RecipeError
from kvfold.plugins.contract.tokenizer_config import TokenizerConfig
from kvfold.runtime.text.tokenizer import Tokenizer

SHIPPED = Path(__file__).parent / "last_words.txt"


def describe_passages(source: str) -> str:
    """The source as a report names it."""
    return "written for kvfold" if source == SHIPPED_PASSAGES else Path(source).name


def read_passages(source: str, tokenizer: Tokenizer, longest: int) -> list[Question]:
    """Each passage as a question whose answer is its last word; those above `longest` tokens are left out.

    Raises:
        CalibrationError: the file cannot be read, or holds conversations.
        RecipeError: no passage is left.
    """
    questions = []
    for passage in _split_passages(SHIPPED if source == SHIPPED_PASSAGES else Path(source)):
        context, _, word = passage.rstrip(whitespace + punctuation).rpartition(" ")
        if context.strip() and word:
            questions.append(make_question(tokenizer.encode, context.rstrip(), f" {word}"))
    fitting = [question for question in questions if len(question.token_ids) <= longest]
    if not fitting:
        raise RecipeError(
            f"evaluate.last_words: {source} has no passage of two words or more and at most {longest} "
            "tokens; write one passage a line"
        )
    return fitting


def _split_passages(path: Path) -> Iterator[str]:
    for document in read_documents(path, TokenizerConfig()):
        # A .txt file is one document in pieces that end at line ends; a line is a passage.
        yield from document.text.splitlines() if path.suffix == ".txt" else [document.text]

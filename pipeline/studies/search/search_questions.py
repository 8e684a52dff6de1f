"""The questions of a search: codes that stand beyond a measured window, asked for at the end."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, islice, product

from kvfold.export.search.question import Question
from kvfold.export.search.search_settings import SearchSettings
from kvfold.pipeline.quality.evaluate.haystacks import Task, write_haystack
from kvfold.plugins.contract.errors import RecipeError
from kvfold.runtime.text.tokenizer import Tokenizer

TASKS = (Task("passkey", 1), Task("multi-key", 4))
DEPTHS = (0.1, 0.4)  # where the asked code stands: 0 is the beginning of the prompt's text


def write_questions(settings: SearchSettings, tokenizer: Tokenizer, context: int) -> Iterator[Question]:
    """The questions, tasks and depths in turn; the same settings and tokenizer give the same.

    Raises:
        RecipeError: a question is longer than the model's context, or its code stands within the window.
    """
    if settings.prompt_length > context:
        raise RecipeError(
            f"search.prompt_length is {settings.prompt_length}, the model's context is {context}; lower it "
            "(and search.measured_window)"
        )
    kinds = islice(cycle(product(DEPTHS, TASKS)), settings.prompts)
    for number, (depth, task) in enumerate(kinds):
        haystack = write_haystack(task, settings.prompt_length, depth, tokenizer, f"search {number}")
        if haystack.distance <= settings.measured_window:
            raise RecipeError(
                f"a code stands {haystack.distance} tokens before the end of its prompt, within "
                f"search.measured_window {settings.measured_window}; raise search.prompt_length"
            )
        yield haystack.question

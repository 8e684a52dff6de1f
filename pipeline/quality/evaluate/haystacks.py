"""Questions that hide codes in a long text and ask for one, written from a seed and text that ships."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from kvfold.export.search.question import Question, make_question
from kvfold.plugins.contract.errors import RecipeError, RequestError
from kvfold.runtime.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from kvfold.pipeline.recipe.evaluate_section import RetrievalSection

FILLER = Path(__file__).parent / "filler.txt"
ADJECTIVES = ("amber", "broken", "crooked", "distant", "empty", "faded", "gentle", "hollow")
NOUNS = ("anchor", "bridge", "candle", "garden", "lantern", "mirror", "orchard", "violin")
INTRODUCTION = "Somewhere in this text there are codes. Remember them, you will be asked."


@dataclass(frozen=True)
class Haystack:
    """A question and where its asked code stands.

    Attributes:
        question: its answer is the asked code.
        distance: tokens from the first of the code's sentence to the last of the question, both counted.
    """

    question: Question
    distance: int


@dataclass(frozen=True)
class HaystackCell:
    """The questions of one task at one length and depth."""

    task: str
    length: int
    depth: float
    haystacks: tuple[Haystack, ...]


@dataclass(frozen=True)
class Task:
    """Whose code is asked for, and how many others there are.

    Attributes:
        name: in the results.
        keys: codes in the text, the asked one included.
    """

    name: str
    keys: int


def write_cells(
    section: RetrievalSection, longest: int, tokenizer: Tokenizer, seed: int
) -> list[HaystackCell]:
    """The questions of every task, length and depth of a recipe; lengths above `longest` are left out.

    Raises:
        RecipeError: a length does not hold the codes.
    """
    tasks = (Task("passkey", 1), Task("multi-key", section.keys))
    lengths = [length for length in section.lengths if length <= longest]
    cells = []
    for task, length, depth in product(tasks, lengths, section.depths):
        seeds = [f"{seed} {task.name} {length} {depth} {trial}" for trial in range(section.trials)]
        haystacks = tuple(write_haystack(task, length, depth, tokenizer, each) for each in seeds)
        cells.append(HaystackCell(task.name, length, depth, haystacks))
    return cells


def write_haystack(task: Task, length: int, depth: float, tokenizer: Tokenizer, seed: str) -> Haystack:
    """A question of at most `length` tokens, short of it by less than a sentence.

    A chat model gets the text as a user's message and begins its reply with the answer's first words.

    Args:
        task: passkey or multi-key.
        length: tokens, the answer included.
        depth: where the asked code stands among the other sentences: 0 first, 1 last.
        tokenizer: of the model.
        seed: the same seed gives the same question.

    Raises:
        RecipeError: the codes alone need more tokens.
    """
    generator = random.Random(seed)
    names = ["pass key"] if task.keys == 1 else _draw_names(generator, task.keys)
    codes = [str(generator.randrange(10_000, 100_000)) for _ in names]
    needle, *others = (f"The {name} is {code}." for name, code in zip(names, codes, strict=True))
    answer = f" {codes[0]}"
    sentences = [line for line in FILLER.read_text(encoding="utf-8").splitlines() if line]
    costs = {line: len(tokenizer.encode_rendered(f" {line}")) for line in sentences}
    wrap, encode = _framing(tokenizer, names[0])
    spare = length - len(encode(wrap([needle, *others]) + answer))
    haystack: list[str] = []
    while spare > 0:
        haystack.append(generator.choice(sentences))
        spare -= costs[haystack[-1]]
    while True:
        lines = _hide(haystack, needle, others, depth, random.Random(seed))
        question = make_question(encode, wrap(lines), answer)
        if len(question.token_ids) <= length:
            break
        if not haystack:
            raise RecipeError(
                f"a {task.name} question needs {len(question.token_ids)} tokens without any other text, "
                f"the recipe asks for {length}; raise it (evaluate.retrieval.lengths, search.prompt_length)"
            )
        haystack.pop()
    before = encode(wrap(lines).split(needle)[0])
    return Haystack(question, len(question.token_ids) - len(before))


def _draw_names(generator: random.Random, count: int) -> list[str]:
    """Different names, so that no two codes are asked for by the same words."""
    return generator.sample(
        [f"code of the {first} {second}" for first, second in product(ADJECTIVES, NOUNS)], count
    )


def _hide(
    haystack: list[str], needle: str, others: list[str], depth: float, generator: random.Random
) -> list[str]:
    """The sentences with the other codes anywhere among them and the asked one at its depth."""
    lines = list(haystack)
    for other in others:
        lines.insert(generator.randint(0, len(lines)), other)
    lines.insert(round(depth * len(lines)), needle)
    return lines


def _framing(
    tokenizer: Tokenizer, name: str
) -> tuple[Callable[[list[str]], str], Callable[[str], list[int]]]:
    """What turns sentences into a text that the code completes, and how such a text is encoded."""
    asked, reply = f"What is the {name}?", f"The {name} is"

    def message(lines: list[str]) -> str:
        return " ".join([INTRODUCTION, *lines, asked])

    def chat(lines: list[str]) -> str:
        messages = [{"role": "user", "content": message(lines)}]
        return tokenizer.render(messages, add_generation_prompt=True) + reply

    def plain(lines: list[str]) -> str:
        return f"{message(lines)} {reply}"

    try:
        chat([])
    except RequestError:  # a base model
        return plain, tokenizer.encode
    return chat, tokenizer.encode_rendered

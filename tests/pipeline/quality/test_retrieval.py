"""Retrieval and last words: questions ask what they should; an oracle answers, a short window does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kvfold.export.search.question import Question, make_question
from kvfold.pipeline.quality.evaluate.answers import ask, score_answer
from kvfold.pipeline.quality.evaluate.evaluation import RetrievalCell
from kvfold.pipeline.quality.evaluate.haystacks import Haystack, Task, write_cells, write_haystack
from kvfold.pipeline.quality.evaluate.last_words import SHIPPED, read_passages
from kvfold.pipeline.quality.evaluate.retrieval import measure_cell, smallest_window
from kvfold.pipeline.quality.likelihood import stream_losses
from kvfold.pipeline.recipe.evaluate_section import SHIPPED_PASSAGES, RetrievalSection
from kvfold.plugins.contract.errors import CalibrationError, RecipeError, RequestError
from kvfold.plugins.contract.template_text import TemplateText
from tests.pipeline.quality.oracle import CopyingSubject
from tests.pipeline.quality.torch_subject import TorchSubject
from tests.runtime.byte_tokenizer import VOCAB, ByteTokenizer
from tests.tiny_model import tiny_config, tiny_decoder, tiny_plan

WINDOW = 600
PASSKEY, MULTI_KEY = Task("passkey", 1), Task("multi-key", 4)
ORACLE, BLIND = CopyingSubject("oracle", VOCAB), CopyingSubject("blind", VOCAB, WINDOW)


class PlainTokenizer(ByteTokenizer):
    """A base model's: no chat template; text starts with a token of its own."""

    def encode(self, text: str, *, control_tokens: bool = True) -> list[int]:
        return [256, *super().encode(text, control_tokens=control_tokens)]

    def render(self, messages: object, *, add_generation_prompt: bool, tools: object = ()) -> TemplateText:
        raise RequestError("this model has no chat template")


def ignore(tokens: float) -> None:
    """A tick that nobody watches."""


def text_of(haystack: Haystack) -> str:
    return ByteTokenizer().decode_rendered(haystack.question.token_ids.tolist())


@pytest.mark.parametrize("task", [PASSKEY, MULTI_KEY])
@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
def test_a_question_holds_its_code_at_its_depth(task: Task, depth: float) -> None:
    haystack = write_haystack(task, 1500, depth, ByteTokenizer(), "seed")
    ids, text = haystack.question.token_ids, text_of(haystack)
    assert 1500 - 80 < len(ids) <= 1500
    code = text[-5:]
    assert code.isdigit()
    assert text.count(f" is {code}") == 2  # hidden once, answered once
    assert text.count("code of the ") == (0 if task.keys == 1 else task.keys + 2)
    assert text.startswith("<|im_start|>user\n")
    assert "<|im_end|>\n<|im_start|>assistant\nThe " in text
    sentence = text.rindex("The ", 0, text.index(code))
    assert haystack.distance == len(ids) - len(ByteTokenizer().encode(text[:sentence]))
    place = sentence / len(text)
    assert abs(place - (0.08 + 0.8 * depth)) < 0.1  # the question and its framing are behind the last depth


def test_a_base_model_gets_plain_text() -> None:
    haystack = write_haystack(PASSKEY, 700, 0.5, PlainTokenizer(), "seed")
    assert text_of(haystack).startswith("<|im_start|>Somewhere")
    assert "assistant" not in text_of(haystack)
    assert len(haystack.question.token_ids) <= 700


def test_questions_come_from_the_seed() -> None:
    def questions(seed: int) -> list[list[int]]:
        section = RetrievalSection(lengths=(512, 4096), depths=(0.2, 0.8), trials=2)
        cells = write_cells(section, 1000, ByteTokenizer(), seed)
        assert [(cell.task, cell.length, cell.depth) for cell in cells] == [
            ("passkey", 512, 0.2),
            ("passkey", 512, 0.8),
            ("multi-key", 512, 0.2),
            ("multi-key", 512, 0.8),
        ]
        return [haystack.question.token_ids.tolist() for cell in cells for haystack in cell.haystacks]

    assert questions(1) == questions(1)
    assert questions(1) != questions(2)
    assert len({tuple(ids) for ids in questions(1)}) == 8


def test_codes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"multi-key question needs \d+ tokens .* asks for 300; raise it"):
        write_haystack(MULTI_KEY, 300, 0.5, ByteTokenizer(), "seed")


def retrieve(depth: float) -> list[RetrievalCell]:
    section = RetrievalSection(lengths=(1500,), depths=(depth,), trials=3)
    cells = write_cells(section, 2048, ByteTokenizer(), 0)
    return [measure_cell(cell, WINDOW, (ORACLE, BLIND), ignore) for cell in cells]


def test_an_oracle_solves_it_and_a_short_window_fails_outside() -> None:
    for cell in retrieve(depth=0.1):
        assert not cell.inside
        assert cell.distance > WINDOW
        assert (cell.subjects["oracle"].accuracy.value, cell.subjects["blind"].accuracy.value) == (1, 0)
        assert cell.subjects["oracle"].nll.value < 0.01 < cell.subjects["blind"].nll.value


def test_inside_of_the_window_both_solve_it() -> None:
    for cell in retrieve(depth=1.0):
        assert cell.inside
        assert cell.distance <= WINDOW
        assert (cell.subjects["oracle"].correct, cell.subjects["blind"].correct) == (3, 3)


def test_the_smallest_window_counts() -> None:
    config = tiny_config()
    plan = tiny_plan(config, "horizon")
    assert smallest_window(plan) == 32
    for other, smallest in ((16, 16), (64, 32)):
        assert smallest_window(plan.with_layers((0,), sliding_window=other, sink_size=4)) == smallest
    assert smallest_window(tiny_plan(config, "identity")) is None


def test_an_answer_s_likelihood_is_its_tokens_losses() -> None:
    config = tiny_config()
    subject = TorchSubject("tiny", tiny_decoder(config, tiny_plan(config, "identity")))
    ids = np.random.default_rng(0).integers(0, config.vocab_size, 40)
    found = score_answer(subject, Question(ids, 37))
    assert found.nll == pytest.approx(stream_losses(subject, ids)[-3:].sum(), rel=1e-6)
    greedy = np.append(ids[:37], [0, 0, 0])
    for position in range(37, 40):
        greedy[position] = subject.compute_logits(greedy[:position])[-1].argmax()
    assert score_answer(subject, Question(greedy, 37)).is_greedy
    greedy[38] = (greedy[38] + 1) % config.vocab_size
    assert not score_answer(subject, Question(greedy, 37)).is_greedy


def test_a_token_across_the_border_belongs_to_the_answer() -> None:
    def encode(text: str) -> list[int]:
        """Bytes, but `ab` is one token."""
        return list(text.encode().replace(b"ab", b"\x01"))

    assert make_question(encode, "xa", "bc") == Equal(Question(np.array([120, 1, 99]), 1))
    assert make_question(encode, "xy", "bc") == Equal(Question(np.array([120, 121, 98, 99]), 2))


class Equal:
    """Compares questions, whose arrays have no plain equality."""

    def __init__(self, question: Question) -> None:
        self.question = question

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Question)
        return (other.answer, other.token_ids.tolist()) == (
            self.question.answer,
            self.question.token_ids.tolist(),
        )


def test_the_shipped_passages_end_with_a_word_of_their_own() -> None:
    lines = SHIPPED.read_text().splitlines()
    passages = read_passages(SHIPPED_PASSAGES, ByteTokenizer(), 2048)
    assert len(passages) == len(lines) == len(set(lines)) == 40
    for line, question in zip(lines, passages, strict=True):
        answer = ByteTokenizer().decode(question.token_ids[question.answer :].tolist())
        assert answer == f" {line.split()[-1]}"
        assert answer.strip().isalpha()
        assert ByteTokenizer().decode(question.token_ids.tolist()) == line


def test_passages_of_a_user(tmp_path: Path) -> None:
    text, lines = tmp_path / "mine.txt", tmp_path / "mine.jsonl"
    text.write_text("the cat sat on the cat.\n\none\na very long passage that does not fit here\n")
    lines.write_text('{"text": "first\\nsecond first "}\n')
    (found,) = read_passages(str(text), ByteTokenizer(), 30)
    assert ByteTokenizer().decode(found.token_ids[found.answer :].tolist()) == " cat"
    (found,) = read_passages(str(lines), ByteTokenizer(), 30)
    assert ByteTokenizer().decode(found.token_ids.tolist()) == "first\nsecond first"
    with pytest.raises(RecipeError, match="no passage of two words or more and at most 5 tokens"):
        read_passages(str(text), ByteTokenizer(), 5)
    lines.write_text('[{"role": "user", "content": "hello there"}]\n')
    with pytest.raises(CalibrationError, match="no chat template"):
        read_passages(str(lines), ByteTokenizer(), 30)


def test_an_oracle_knows_a_word_that_was_said_before() -> None:
    passages = [make_question(ByteTokenizer().encode, "we saw a zebra; it was a", " zebra")]
    scores = ask((ORACLE,), passages, ignore)
    assert scores["oracle"].accuracy.value == 1

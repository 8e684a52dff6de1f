"""Score the answer that follows a context: its tokens' likelihood, and whether each was the likeliest.

Every task that asks for something is scored so, and lm-evaluation-harness's `loglikelihood` is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kvfold.export.search.question import Question
from kvfold.pipeline.quality.evaluate.evaluation import AnswerScore
from kvfold.pipeline.quality.intervals import bootstrap_mean, share
from kvfold.pipeline.quality.logit_measures import negative_log_likelihood
from kvfold.pipeline.quality.subjects import Subject, Tick


@dataclass(frozen=True)
class Answered:
    """One scored answer.

    Attributes:
        nll: -log p of the whole answer, nat.
        is_greedy: whether greedy decoding would give it.
    """

    nll: float
    is_greedy: bool


def score_answer(subject: Subject, question: Question) -> Answered:
    """Read the context, then the answer as it is given, token by token."""
    ids, nll, is_greedy = question.token_ids, 0.0, True
    position = question.answer - 1  # its logits predict the answer's first token
    for logits in subject.stream_logits(ids[:-1], position):
        following = ids[position + 1 : position + 1 + len(logits)]
        nll += float(negative_log_likelihood(logits, ids[position : position + 1 + len(logits)]).sum())
        is_greedy = is_greedy and bool((logits.argmax(axis=-1) == following).all())
        position += len(logits)
    return Answered(nll, is_greedy)


def ask(subjects: Sequence[Subject], questions: Sequence[Question], tick: Tick) -> dict[str, AnswerScore]:
    """Every subject's scores over the same questions; `tick` is told of every answer's tokens."""
    scores = {}
    for subject in subjects:
        answers = []
        subject.read_ahead([question.token_ids[:-1] for question in questions], tick)
        for question in questions:
            answers.append(score_answer(subject, question))
            tick(subject.left * len(question.token_ids))
        scores[subject.name] = summarise(answers)
    return scores


def summarise(answers: Sequence[Answered]) -> AnswerScore:
    """Accuracy and likelihood over the answers of one subject."""
    correct = sum(answer.is_greedy for answer in answers)
    return AnswerScore(
        correct=correct,
        accuracy=share(correct, len(answers)),
        nll=bootstrap_mean(np.array([answer.nll for answer in answers]), least=0),
    )

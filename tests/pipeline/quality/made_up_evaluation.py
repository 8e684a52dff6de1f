"""An evaluation whose figures are chosen, with every kind of row."""

from __future__ import annotations

from kvfold.pipeline.quality.evaluate.evaluation import (
    AnswerScore,
    Evaluation,
    LastWords,
    RetrievalCell,
    Slip,
    SlipCount,
    Slips,
)
from kvfold.pipeline.quality.intervals import Estimate
from kvfold.pipeline.quality.likelihood_results import Divergence, Divergences, Perplexity
from kvfold.pipeline.quality.subject_names import BFLOAT16, ENGINE, FOLDED, ORIGINAL

SUBJECTS = (ORIGINAL, FOLDED, ENGINE)


def _near(value: float) -> Estimate:
    return Estimate(value=value, low=0.9 * value, high=1.1 * value)


def _perplexity(length: int) -> Perplexity:
    return Perplexity(
        length=length,
        windows=1024 // length,
        subjects={name: _near(16 + index) for index, name in enumerate(SUBJECTS)},
        ratios={FOLDED: Estimate(value=1.05), ENGINE: _near(1.1)},
    )


def _divergence(candidate: str, kl: float) -> Divergence:
    flips = {"flips": _near(0.1), "flips_lost": _near(0.05), "flips_gained": _near(0.02)}
    return Divergence(
        candidate=candidate,
        kl_mean=_near(kl),
        kl_median=Estimate(value=kl / 2),
        kl_p99=Estimate(value=9 * kl),
        top1_agreement=_near(0.9),
        **flips,
    )


def _answers(correct: int) -> dict[str, AnswerScore]:
    score = AnswerScore(correct=correct, accuracy=_near(correct / 8), nll=_near(1.5))
    return dict.fromkeys(SUBJECTS, score)


def _cell(task: str, inside: bool) -> RetrievalCell:
    return RetrievalCell(
        task=task,
        length=1000,
        depth=0.9 if inside else 0.1,
        distance=100 if inside else 900,
        inside=inside,
        trials=8,
        subjects=_answers(6 if inside else 2),
    )


def _slipped(tokens: int, words: int) -> SlipCount:
    shares = {"token_share": _near(tokens / 200), "word_share": _near(words / 200)}
    return SlipCount(replies=200, tokens=tokens, words=words, **shares)


SLIP = Slip(
    opener="Hello",
    before="Hello!",
    word=" I'shine",
    after=". I'm here to help with any kind of project.",
    chance=0.0025,
    likeliest=" How",
    likeliest_chance=0.196,
)
EVALUATION = Evaluation(
    text="wiki & co.txt",
    window=512,
    perplexity=(_perplexity(64), _perplexity(256)),
    divergences=Divergences(
        length=256,
        windows=4,
        tokens=1024,
        candidates=(_divergence(BFLOAT16, 0.0003), _divergence(FOLDED, 0.013), _divergence(ENGINE, 0.022)),
    ),
    retrieval=tuple(_cell(task, inside) for task in ("passkey", "multi-key") for inside in (False, True)),
    last_words=LastWords(text="words.txt", passages=8, subjects=_answers(4)),
    slips=Slips(
        unlikely_token=0.001,
        unlikely_word=0.02,
        temperature=0.7,
        engine=_slipped(2, 13),
        original=_slipped(0, 8),
        drawn=_slipped(30, 120),
        worst=(SLIP, *[SLIP.model_copy(update={"chance": 0.003})] * 12),
    ),
    cpu_seconds={"comparison": 61.4, "slips": 1234.5},
)

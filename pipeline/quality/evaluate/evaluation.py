"""What an evaluation measured, as `report/<target>/evaluation.json` stores it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from kvfold.pipeline.quality.intervals import Estimate, share
from kvfold.pipeline.quality.likelihood_results import Divergences, Perplexity
from kvfold.plugins.contract.record import Record
from kvfold.runtime.bundle import open_bundle, read_record


def evaluation_file(target: str) -> str:
    """Where a bundle keeps the evaluation of a target's engine."""
    return f"report/{target}/evaluation.json"


class AnswerScore(Record):
    """How one subject answered a set of questions.

    Attributes:
        correct: answers of which every token was the likeliest one.
        accuracy: their share.
        nll: mean -log p of a whole answer, nat.
    """

    correct: int
    accuracy: Estimate
    nll: Estimate


class RetrievalCell(Record):
    """One task at one length and depth.

    Attributes:
        task: `passkey` (one code) or `multi-key` (several, one is asked for).
        length: tokens of a question at most.
        depth: where the code stands, 0..1.
        distance: tokens from the code's first to the answer's last, the longest of the trials.
        inside: whether that is within the smallest window: where not, only layers with wider windows or none
            reach the code, in one of the trials at least.
        trials: questions.
    """

    task: str
    length: int
    depth: float
    distance: int
    inside: bool
    trials: int
    subjects: dict[str, AnswerScore]


class RetrievalShare(Record):
    """Cells of one task taken together, inside or outside of the window."""

    task: str
    inside: bool
    trials: int
    subjects: dict[str, Estimate]


class LastWords(Record):
    """Last words of passages.

    Attributes:
        text: where they came from, as a reader is told.
        passages: how many.
    """

    text: str
    passages: int
    subjects: dict[str, AnswerScore]


class Slip(Record):
    """The least likely word of a reply that slipped, where it stands.

    Attributes:
        opener: what the user said last.
        before, word, after: the reply around it.
        chance: that the original says the word there.
        likeliest: the token that it held likeliest there, with `likeliest_chance`.
    """

    opener: str
    before: str
    word: str
    after: str
    chance: float
    likeliest: str
    likeliest_chance: float


class SlipCount(Record):
    """How many replies hold a token, and how many a word, that the original would hardly have said."""

    replies: int
    tokens: int
    words: int
    token_share: Estimate
    word_share: Estimate


class Slips(Record):
    """Replies to short chats, and what the original would hardly have said in them.

    Attributes:
        unlikely_token: the chance below which a token counts.
        unlikely_word: the share of the likeliest token's chance below which a word counts.
        temperature: at which the original drew replies.
        engine: its greedy replies.
        original, drawn: the original's own, greedy and drawn, to some of the same openers.
        worst: the worst word of each of the engine's replies that holds either, the least likely first.
    """

    unlikely_token: float
    unlikely_word: float
    temperature: float
    engine: SlipCount
    original: SlipCount
    drawn: SlipCount
    worst: tuple[Slip, ...]


class Evaluation(Record):
    """Everything that `kvfold eval` measured. Subjects: original (the control), folded, engine.

    Attributes:
        text: where the tokens of perplexity and divergence came from.
        window: the smallest one of the plan's layers, in tokens; None where all are global.
        slips: None where the model has no chat template, or no opener fits its context.
        cpu_seconds: of each part, over all threads.
    """

    text: str
    window: int | None
    perplexity: tuple[Perplexity, ...]
    divergences: Divergences
    retrieval: tuple[RetrievalCell, ...]
    last_words: LastWords
    slips: Slips | None
    cpu_seconds: dict[str, float]

    def retrieval_shares(self) -> tuple[RetrievalShare, ...]:
        """Each task inside and outside of the window, all lengths and depths pooled."""
        kinds = sorted({(cell.task, cell.inside) for cell in self.retrieval}, reverse=True)
        return tuple(
            _pool(task, inside, [c for c in self.retrieval if (c.task, c.inside) == (task, inside)])
            for task, inside in kinds
        )


def _pool(task: str, inside: bool, cells: Iterable[RetrievalCell]) -> RetrievalShare:
    trials, correct = 0, dict[str, int]()
    for cell in cells:
        trials += cell.trials
        for name, score in cell.subjects.items():
            correct[name] = correct.get(name, 0) + score.correct
    shares = {name: share(count, trials) for name, count in correct.items()}
    return RetrievalShare(task=task, inside=inside, trials=trials, subjects=shares)


def read_evaluation(root: Path, target: str = "cpu") -> Evaluation:
    """The evaluation of a bundle's target; raises BundleError where there is none."""
    return read_record(open_bundle(root).file(evaluation_file(target)), Evaluation)

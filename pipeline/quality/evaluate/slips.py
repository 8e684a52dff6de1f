"""Slips: replies that hold what the original, reading the same text, would hardly have said.

The engine replies to short everyday openers, greedily, and the original reads each reply after its opener. It
judges each token, and each word by all its tokens: a damaged word may be made of pieces of which each is a
likely one, as in "I'shine". What is found in the original's own replies says what a count is worth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import exp

import numpy as np

from kvfold.pipeline.quality.evaluate.evaluation import Slip, SlipCount, Slips
from kvfold.pipeline.quality.evaluate.openers import Opener
from kvfold.pipeline.quality.intervals import share
from kvfold.pipeline.quality.subjects import Subject
from kvfold.runtime.llm.generation import Completion
from kvfold.runtime.llm.llm import LLM
from kvfold.runtime.sampling.batch_sampler import score_tokens
from kvfold.runtime.sampling.logprobs import TokenLogprob
from kvfold.runtime.sampling.params import SamplingParams
from kvfold.runtime.text.tokenizer import Tokenizer

UNLIKELY_TOKEN = 0.001  # its chance is below this
UNLIKELY_WORD = 0.02  # its chance is below this share of the likeliest token's there
REPLY_TOKENS = 64  # of a reply at most
TEMPERATURE = 0.7  # of the replies that the original draws
OWN = 4  # the original itself replies to every so many openers
TOGETHER = 50  # replies between two reports of progress


@dataclass(frozen=True)
class Speakers:
    """Who replies, and who judges.

    Attributes:
        engine: replies greedily.
        judge: the original, which reads what the engine replied.
        original: once more, to reply itself.
    """

    engine: LLM
    judge: Subject
    original: LLM


@dataclass(frozen=True)
class Word:
    """A run of tokens in a reply, whose letters and apostrophes are one word; else a single token.

    Attributes:
        tokens: their places in the reply.
        chance: that the original says it there.
        likeliest: the token that the original held likeliest there, with `likeliest_chance`.
    """

    tokens: range
    chance: float
    likeliest: int
    likeliest_chance: float

    @property
    def share(self) -> float:
        """Its chance beside the likeliest token's."""
        return self.chance / self.likeliest_chance


@dataclass(frozen=True)
class Verdict:
    """What the original makes of one reply.

    Attributes:
        least_chance: of its least likely token.
        worst: its least likely word beside what was likeliest there.
    """

    least_chance: float
    worst: Word

    @property
    def has_unlikely_token(self) -> bool:
        """Whether the original would hardly have said one of its tokens."""
        return self.least_chance < UNLIKELY_TOKEN

    @property
    def has_unlikely_word(self) -> bool:
        """Whether it would hardly have said one of its words."""
        return self.worst.share < UNLIKELY_WORD

    @property
    def slips(self) -> bool:
        """Whether it holds either."""
        return self.has_unlikely_token or self.has_unlikely_word


def measure_slips(openers: Sequence[Opener], speakers: Speakers, tick: Callable[[int], None]) -> Slips:
    """Count the replies that slip, of the engine and of the original itself; needs at least one opener.

    `tick` is told of every reply: the tokens of its opener, and those that it may have.
    """
    tokenizer = speakers.engine.generator.tokenizer
    greedy = SamplingParams(max_tokens=REPLY_TOKENS)
    verdicts, worst = [], []
    replies = _reply(speakers.engine, openers, greedy, tick)
    read = [_read(opener.token_ids, reply.token_ids) for opener, reply in zip(openers, replies, strict=True)]
    speakers.judge.read_ahead(read, lambda tokens: None)
    for opener, reply in zip(openers, replies, strict=True):
        judged = judge(speakers.judge, opener.token_ids, reply.token_ids)
        verdicts.append(weigh(judged, tokenizer))
        if verdicts[-1].slips:
            worst.append(_describe(opener, judged, verdicts[-1].worst, tokenizer))
    some = openers[::OWN]
    own, drawn = (
        [weigh(reply.logprobs or (), tokenizer) for reply in _reply(speakers.original, some, params, tick)]
        for params in (replace(greedy, logprobs=1), replace(greedy, logprobs=1, temperature=TEMPERATURE))
    )
    return Slips(
        unlikely_token=UNLIKELY_TOKEN,
        unlikely_word=UNLIKELY_WORD,
        temperature=TEMPERATURE,
        engine=_count(verdicts),
        original=_count(own),
        drawn=_count(drawn),
        worst=tuple(sorted(worst, key=lambda slip: slip.chance / slip.likeliest_chance)),
    )


def judge(original: Subject, opener: Sequence[int], reply: Sequence[int]) -> list[TokenLogprob]:
    """What the original thinks of each token of a reply, and the token that it held likeliest there."""
    judged = list[TokenLogprob]()
    for block in original.stream_logits(_read(opener, reply), len(opener) - 1):
        said = np.array(reply[len(judged) : len(judged) + len(block)])
        judged += score_tokens(block, said, 1)
    return judged


def _read(opener: Sequence[int], reply: Sequence[int]) -> np.ndarray:
    """What is read to judge a reply: its last token is not."""
    return np.array([*opener, *reply])[:-1]


def weigh(reply: Sequence[TokenLogprob], tokenizer: Tokenizer) -> Verdict:
    """The verdict on a reply, of one token at least, with the likeliest token beside each."""
    words = []
    for tokens in split_words([token.token_id for token in reply], tokenizer):
        ((likeliest, logprob),) = reply[tokens.start].top
        words.append(Word(tokens, exp(sum(reply[at].logprob for at in tokens)), likeliest, exp(logprob)))
    least = min(token.logprob for token in reply)
    return Verdict(exp(least), min(words, key=lambda word: word.share))


def split_words(ids: Sequence[int], tokenizer: Tokenizer) -> list[range]:
    """The places of each word's tokens; a token goes on with a word where letters meet letters."""
    starts, text = list[int](), ""
    for place in range(len(ids)):
        longer = tokenizer.decode_rendered(ids[: place + 1])
        piece = longer[len(text) :]
        if not (_in_word(text[-1:]) and _in_word(piece[:1])):
            starts.append(place)
        text = longer
    return [range(start, stop) for start, stop in pairwise([*starts, len(ids)])]


def _in_word(letter: str) -> bool:
    return letter.isalpha() or letter in ("'", "\u2019")


def _reply(
    llm: LLM, openers: Sequence[Opener], params: SamplingParams, tick: Callable[[int], None]
) -> list[Completion]:
    """A reply to each; where they are drawn, the seed of each is its place."""
    replies: list[Completion] = []
    for start in range(0, len(openers), TOGETHER):
        some = openers[start : start + TOGETHER]
        each = [replace(params, seed=start + place) for place in range(len(some))]
        replies += llm.generate([opener.token_ids for opener in some], each)
        tick(sum(len(opener.token_ids) + REPLY_TOKENS for opener in some))
    return replies


def _describe(opener: Opener, judged: Sequence[TokenLogprob], word: Word, tokenizer: Tokenizer) -> Slip:
    ids = [token.token_id for token in judged]
    before, whole = tokenizer.decode_rendered(ids[: word.tokens.start]), tokenizer.decode_rendered(ids)
    through = tokenizer.decode_rendered(ids[: word.tokens.stop])
    rather = tokenizer.decode_rendered([*ids[: word.tokens.start], word.likeliest])
    return Slip(
        opener=opener.text,
        before=before,
        word=through[len(before) :],
        after=whole[len(through) :],
        chance=word.chance,
        likeliest=rather[len(before) :],
        likeliest_chance=word.likeliest_chance,
    )


def _count(verdicts: Sequence[Verdict]) -> SlipCount:
    tokens = sum(verdict.has_unlikely_token for verdict in verdicts)
    words = sum(verdict.has_unlikely_word for verdict in verdicts)
    return SlipCount(
        replies=len(verdicts),
        tokens=tokens,
        words=words,
        token_share=share(tokens, len(verdicts)),
        word_share=share(words, len(verdicts)),
    )

"""Slips: a word is caught by all its tokens; an engine judged by itself has none, by another model all."""

from __future__ import annotations

from dataclasses import replace
from math import log

import numpy as np
import pytest

from kvfold.pipeline.quality.evaluate.openers import read_openers
from kvfold.pipeline.quality.evaluate.slips import (
    OWN,
    REPLY_TOKENS,
    Speakers,
    judge,
    measure_slips,
    split_words,
    weigh,
)
from kvfold.pipeline.quality.logit_measures import negative_log_likelihood
from kvfold.pipeline.quality.subjects import EngineSubject
from kvfold.runtime.engine.protocol import StepInputs
from kvfold.runtime.llm.llm import LLM
from kvfold.runtime.sampling.logprobs import TokenLogprob
from kvfold.runtime.sampling.params import SamplingParams
from tests.pipeline.quality.test_retrieval import PlainTokenizer
from tests.runtime.byte_tokenizer import VOCAB, ByteTokenizer
from tests.runtime.harness import PLANS, make_llm
from tests.runtime.synthetic_engine import SyntheticEngine

OPENERS = read_openers(8, ByteTokenizer(), 200)


def subject(plan: str) -> EngineSubject:
    return EngineSubject("original", SyntheticEngine(PLANS[plan], vocab=VOCAB), 64)


class AsciiEngine(SyntheticEngine):
    """Says printable ASCII only, so that every token is a whole character."""

    def logits(self, step: StepInputs, index: int) -> np.ndarray:
        row = super().logits(step, index)
        row[:32] = row[127:] = -20
        return row


def speakers(engine: str, original: str) -> Speakers:
    return Speakers(make_llm(PLANS[engine])[0], subject(original), make_llm(PLANS[original])[0])


def ignore(tokens: int) -> None:
    """A tick that nobody watches."""


def said(*tokens: tuple[str, float, float]) -> list[TokenLogprob]:
    """A reply of bytes: each with its chance and that of the likeliest there, `X`."""
    return [TokenLogprob(ord(text), log(own), ((ord("X"), log(most)),)) for text, own, most in tokens]


def test_a_damaged_word_of_likely_tokens_is_caught() -> None:
    """`I'shine`, as a 4-bit SmolLM2-135M would say it after `Hello!`: each token is a likely one there."""
    reply = said(
        (" ", 0.9, 0.9), ("I", 0.182, 0.196), ("'", 0.717, 0.717), ("s", 0.146, 0.146), ("h", 0.131, 0.133)
    )
    verdict = weigh(reply, ByteTokenizer())
    word = verdict.worst
    assert (verdict.has_unlikely_token, verdict.has_unlikely_word) == (False, True)
    assert word.tokens == range(1, 5)
    assert word.chance == pytest.approx(0.182 * 0.717 * 0.146 * 0.131)
    assert word.likeliest == ord("X")
    assert word.likeliest_chance == pytest.approx(0.196)
    apart = [reply[0], reply[1], *said(("-", 0.717, 0.717)), *reply[3:]]
    assert not weigh(apart, ByteTokenizer()).slips, "the same tokens as three words"


@pytest.mark.parametrize(
    ("chance", "most", "token", "word"),
    [
        (0.0009, 0.9, True, True),
        (0.0011, 0.9, False, True),
        (0.0009, 0.02, True, False),
        (0.3, 0.3, False, False),
    ],
)
def test_a_token_counts_by_its_chance_a_word_by_what_was_likelier(
    chance: float, most: float, token: bool, word: bool
) -> None:
    verdict = weigh(said(("a", 0.5, 0.5), (" ", chance, most), ("b", 0.9, 0.9)), ByteTokenizer())
    assert (verdict.has_unlikely_token, verdict.has_unlikely_word) == (token, word)
    assert verdict.slips == (token or word)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Hi! I'm a tie-breaker.", ["Hi", "!", " ", "I'm", " ", "a", " ", "tie", "-", "breaker", "."]),
        ("in 1969", ["in", " ", "1", "9", "6", "9"]),
    ],
)
def test_words_are_letters_and_apostrophes(text: str, words: list[str]) -> None:
    ids = ByteTokenizer().encode(text)
    assert [text[place.start : place.stop] for place in split_words(ids, ByteTokenizer())] == words


def test_an_engine_judged_by_itself_slips_like_the_original() -> None:
    slips = measure_slips(OPENERS, speakers("hybrid", "hybrid"), ignore)
    assert (slips.engine.replies, slips.original.replies, slips.drawn.replies) == (8, 2, 2)
    own = measure_slips(OPENERS[::OWN], speakers("hybrid", "hybrid"), ignore)
    assert (own.engine.tokens, own.engine.words) == (slips.original.tokens, slips.original.words)
    assert slips.engine.tokens == 0, "the likeliest token of each place"


def test_a_reply_of_another_model_slips_and_its_worst_word_is_shown_in_place() -> None:
    llm = LLM(AsciiEngine(PLANS["local"], vocab=VOCAB), ByteTokenizer(()))
    found = measure_slips(OPENERS, replace(speakers("local", "global"), engine=llm), ignore)
    assert found.engine.tokens == found.engine.words == len(found.worst) == 8
    shares = [slip.chance / slip.likeliest_chance for slip in found.worst]
    assert shares == sorted(shares)
    original = subject("global")
    for slip in found.worst:
        opener = next(opener for opener in OPENERS if opener.text == slip.opener)
        (reply,) = llm.generate(opener.token_ids, SamplingParams(max_tokens=REPLY_TOKENS))
        word = weigh(judge(original, opener.token_ids, reply.token_ids), ByteTokenizer()).worst
        assert (slip.chance, slip.likeliest_chance) == (word.chance, word.likeliest_chance)
        assert slip.before + slip.word + slip.after == ByteTokenizer().decode_rendered(reply.token_ids)


def test_judged_tokens_have_the_probabilities_of_the_whole_text() -> None:
    original, ids = subject("hybrid"), np.arange(40) * 5
    judged = judge(original, ids[:30].tolist(), ids[30:].tolist())
    losses = negative_log_likelihood(original.compute_logits(ids[:-1]), ids)
    assert [token.token_id for token in judged] == ids[30:].tolist()
    assert [-token.logprob for token in judged] == pytest.approx(losses[29:].tolist())


def test_the_original_s_own_replies_are_counted_by_the_same_rule() -> None:
    found = measure_slips(OPENERS, speakers("hybrid", "hybrid"), ignore)
    llm, original = make_llm(PLANS["hybrid"])[0], subject("hybrid")
    for temperature, count in ((0.0, found.original), (found.temperature, found.drawn)):
        tokens = words = 0
        for seed, opener in enumerate(OPENERS[::OWN]):
            params = SamplingParams(max_tokens=REPLY_TOKENS, temperature=temperature, seed=seed)
            (reply,) = llm.generate(opener.token_ids, params)
            judged = judge(original, opener.token_ids, reply.token_ids)
            verdict = weigh(judged, ByteTokenizer())
            tokens, words = tokens + verdict.has_unlikely_token, words + verdict.has_unlikely_word
        assert (count.tokens, count.words) == (tokens, words)
    assert found.drawn.tokens > found.original.tokens == 0
    assert measure_slips(OPENERS, speakers("hybrid", "hybrid"), ignore) == found


def test_every_reply_of_either_is_told() -> None:
    told: list[int] = []
    measure_slips(OPENERS, speakers("hybrid", "hybrid"), told.append)
    answered = [*OPENERS, *OPENERS[::OWN], *OPENERS[::OWN]]
    assert sum(told) == sum(len(opener.token_ids) + REPLY_TOKENS for opener in answered)


def test_the_shipped_openers_are_150_messages_and_50_chats_no_two_alike() -> None:
    openers = read_openers(200, ByteTokenizer(), 2048)
    texts = [ByteTokenizer().decode_rendered(opener.token_ids) for opener in openers]
    assert len(set(texts)) == len({opener.text for opener in openers}) == 200
    turns = [text.count("<|im_start|>user") for text in texts]
    assert (turns.count(1), turns.count(2)) == (150, 50)
    assert all(text.endswith("<|im_start|>assistant\n") for text in texts)
    assert all(opener.text in text for opener, text in zip(openers, texts, strict=True))


def test_fewer_openers_are_spread_and_those_that_do_not_fit_are_left_out() -> None:
    shipped = [opener.text for opener in read_openers(200, ByteTokenizer(), 2048)]
    few = [opener.text for opener in read_openers(4, ByteTokenizer(), 2048)]
    assert few == shipped[::50]
    short = read_openers(200, ByteTokenizer(), 60)
    assert 0 < len(short) < 200
    assert all(len(opener.token_ids) <= 60 for opener in short)


def test_a_base_model_gets_no_openers() -> None:
    assert read_openers(200, PlainTokenizer(), 2048) == []

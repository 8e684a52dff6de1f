"""Replies sampled side by side: seeds, penalties over a reply, grammars, what ends when, errors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from kvfold.plugins.contract.errors import KvfoldError, RequestError
from kvfold.runtime.sampling.batch_sampler import NO_TOKEN, BatchSampler, score_tokens
from kvfold.runtime.sampling.constraint import Constraint
from kvfold.runtime.sampling.params import SamplingParams
from kvfold.runtime.sampling.sampling_state import SamplingState
from tests.runtime.sampling.frozen_tokens import FROZEN, PROMPT, VOCAB, Frozen, make_row

LOGITS = np.random.default_rng(0).normal(0, 2, 50).astype(np.float32)
NOTHING = np.empty(0, np.int64)


def state_of(params: SamplingParams, prompt: Sequence[int] = (), eos: Sequence[int] = ()) -> SamplingState:
    return SamplingState(params, np.array(prompt, np.int64), eos, len(LOGITS))


def sample(states: Sequence[SamplingState], steps: int, logits: np.ndarray = LOGITS) -> list[list[int]]:
    """Tokens of each state over steps of the same logits."""
    sampler = BatchSampler(len(logits))
    rows = np.tile(logits, (len(states), 1))
    drawn = [[sampled.token_id for sampled in sampler.sample(rows, states)] for _ in range(steps)]
    tokens: list[list[int]] = np.transpose(drawn).tolist()
    return tokens


@pytest.mark.parametrize("frozen", FROZEN, ids=lambda frozen: f"{frozen.params.temperature}-{frozen.peaked}")
def test_a_seed_gives_the_tokens_that_it_gave(frozen: Frozen) -> None:
    states = [
        SamplingState(SamplingParams(**{**vars(frozen.params), "seed": seed}), np.array(PROMPT), (), VOCAB)
        for seed in frozen.tokens
    ]
    sampler = BatchSampler(VOCAB)
    drawn = []
    for step in range(10):
        rows = np.tile(make_row(step, frozen.peaked), (len(states), 1))
        drawn.append([sampled.token_id for sampled in sampler.sample(rows, states)])
    assert np.transpose(drawn).tolist() == list(frozen.tokens.values())


def test_a_seed_repeats_and_another_differs() -> None:
    params = [SamplingParams(temperature=1.0, seed=seed) for seed in (3, 3, 4)]
    first, again, other = sample([state_of(each) for each in params], 30)
    assert first == again != other


def test_without_a_seed_replies_differ() -> None:
    first, other = sample([state_of(SamplingParams(temperature=1.0)) for _ in range(2)], 30)
    assert first != other


def test_frequencies_follow_the_distribution() -> None:
    shares = np.array([0.5, 0.3, 0.2])
    state = SamplingState(SamplingParams(temperature=1.0, seed=1), NOTHING, (), 3)
    (tokens,) = sample([state], 20_000, np.log(shares).astype(np.float32))
    assert np.abs(np.bincount(tokens, minlength=3) / 20_000 - shares).max() < 0.015


def test_replies_do_not_show_who_else_is_sampled() -> None:
    """Replies that come, go and change places give what each gives alone."""
    params = [
        SamplingParams(),
        SamplingParams(temperature=0.9, top_p=0.9, seed=1, logprobs=3),
        SamplingParams(temperature=1.5, frequency_penalty=0.5, seed=2),
        SamplingParams(repetition_penalty=1.3, presence_penalty=0.5, logprobs=0),
    ]
    alone = [sample([state_of(each, (4, 5))], 12)[0] for each in params]
    states = [state_of(each, (4, 5)) for each in params]
    sampler, tokens = BatchSampler(len(LOGITS)), [list[int]() for _ in states]
    rng = np.random.default_rng(0)
    while any(len(each) < 12 for each in tokens):
        running = [at for at in rng.permutation(4).tolist() if len(tokens[at]) < 12][
            : int(rng.integers(1, 5))
        ]
        rows = np.tile(LOGITS, (len(running), 1))
        for at, sampled in zip(running, sampler.sample(rows, [states[at] for at in running]), strict=True):
            tokens[at].append(sampled.token_id)
    assert tokens == alone


def test_penalties_count_from_token_to_token() -> None:
    """Logits 3, 2.5, 2: each token of the reply takes 0.8 once and 0.4 each time from its own."""
    logits = np.array([3.0, 2.5, 2.0], np.float32)
    params = SamplingParams(frequency_penalty=0.4, presence_penalty=0.8)
    state = SamplingState(params, np.array([0, 0, 0]), (), 3)
    # 3, 2.5, 2 | 1.8, 2.5, 2 | 1.8, 1.3, 2 | 1.8, 1.3, 0.8 | 1.4, 1.3, 0.8 | 1.0, 1.3, 0.8
    assert sample([state], 6, logits) == [[0, 1, 2, 0, 0, 1]]


def test_the_repetition_penalty_counts_the_prompt() -> None:
    logits = np.array([3.0, 2.0, 1.4], np.float32)
    penalised = SamplingState(SamplingParams(repetition_penalty=2.0), np.array([0, 0]), (), 3)
    # 1.5, 2, 1.4 | 1.5, 1, 1.4
    assert sample([penalised], 3, logits) == [[1, 0, 0]]


def test_a_bias_moves_a_token() -> None:
    assert sample([state_of(SamplingParams(logit_bias={7: 100.0}))], 2) == [[7, 7]]


def test_ends_wait_for_min_tokens() -> None:
    logits = np.array([1.0, 3.0, 2.0, 0.0], np.float32)
    params = SamplingParams(min_tokens=2, stop_token_ids=(2,))
    state = SamplingState(params, NOTHING, (1, 999), 4)
    assert sample([state], 4, logits) == [[0, 0, 1, 1]]


def test_log_probabilities_are_the_model_s() -> None:
    params = SamplingParams(temperature=0.5, logprobs=2, logit_bias={3: 100.0})
    plain = SamplingParams()
    told, untold = BatchSampler(50).sample(np.stack([LOGITS, LOGITS]), [state_of(params), state_of(plain)])
    expected = LOGITS - np.log(np.exp(LOGITS.astype(np.float64)).sum())
    assert untold.logprob is None
    assert told.logprob is not None and told.token_id == told.logprob.token_id == 3
    assert told.logprob.logprob == pytest.approx(expected[3], abs=1e-6)
    order = np.argsort(-LOGITS)[:2]
    assert [token for token, _ in told.logprob.top] == order.tolist()
    assert [value for _, value in told.logprob.top] == pytest.approx(expected[order], abs=1e-6)


def test_scores_are_the_model_s() -> None:
    expected = LOGITS - np.log(np.exp(LOGITS.astype(np.float64)).sum())
    scored = score_tokens(np.stack([LOGITS, LOGITS]), np.array([7, 8]), 1)
    assert [each.token_id for each in scored] == [7, 8]
    assert [each.logprob for each in scored] == pytest.approx(expected[[7, 8]], abs=1e-6)
    assert [each.top[0][0] for each in scored] == [int(LOGITS.argmax())] * 2
    assert len(score_tokens(LOGITS[None], np.array([7]), 99)[0].top) == 50
    with pytest.raises(KvfoldError, match="not finite"):
        score_tokens(np.full((1, 50), np.nan, np.float32), np.array([7]), 1)


class Alternating:
    """A grammar of two tokens, one after the other; after three it is finished and allows nothing."""

    def __init__(self) -> None:
        self.accepted: list[int] = []
        self.masks = 0

    @property
    def allowed(self) -> int:
        return (40, 9)[len(self.accepted) % 2]

    def fill_mask(self, mask: np.ndarray) -> None:
        self.masks += 1
        mask[:] = 0
        if not self.finished:
            mask[self.allowed // 32] = 1 << self.allowed % 32

    def accept(self, token_id: int) -> None:
        if self.finished or token_id != self.allowed:
            raise RequestError(f"{token_id} is not allowed")
        self.accepted.append(token_id)

    def rollback(self, count: int) -> None:
        del self.accepted[len(self.accepted) - count :]

    @property
    def finished(self) -> bool:
        return len(self.accepted) == 3


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_grammar_says_what_may_follow_and_hears_what_did(temperature: float) -> None:
    grammar: Constraint = Alternating()
    params = SamplingParams(temperature=temperature)
    ruled = SamplingState(params, NOTHING, (), 50, grammar)
    free = state_of(SamplingParams())
    sampler, rows = BatchSampler(50), np.stack([LOGITS, LOGITS])
    assert [sampler.sample(rows, [ruled, free])[0].token_id for _ in range(3)] == [40, 9, 40]
    assert grammar.finished
    stuck, other = sampler.sample(rows, [ruled, free])
    assert isinstance(stuck.error, RequestError) and "no token may follow" in str(stuck.error)
    assert stuck.token_id == NO_TOKEN and other.token_id == int(LOGITS.argmax())
    grammar.rollback(1)
    assert sampler.sample(rows, [ruled, free])[0].token_id == 40


def test_a_greedy_reply_asks_for_a_mask_where_its_likeliest_token_is_refused_and_nowhere_else() -> None:
    """Penalties and log probabilities are of the token that came, not of the one that was refused."""
    grammar = Alternating()
    params = SamplingParams(presence_penalty=1.0, logprobs=1)
    ruled = SamplingState(params, NOTHING, (), 50, grammar)
    sampler, row = BatchSampler(50), LOGITS[None].copy()
    row[0, 40] = 9.0
    expected = row[0] - np.log(np.exp(row[0].astype(np.float64)).sum())
    for step, (token, masks) in enumerate([(40, 0), (9, 1), (40, 1)]):
        [sampled] = sampler.sample(row, [ruled])
        assert (sampled.token_id, grammar.masks) == (token, masks), step
        assert sampled.logprob is not None and sampled.logprob.top[0][0] == 40
        assert sampled.logprob.logprob == pytest.approx(expected[token], abs=1e-6)
    assert ruled.native.seen_count == 2


class Failing(Alternating):
    """A grammar that cannot go on."""

    def fill_mask(self, mask: np.ndarray) -> None:
        raise RequestError("the grammar is too large")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_grammar_that_fails_ends_its_own_reply_alone(temperature: float) -> None:
    failing = SamplingState(SamplingParams(temperature=temperature), NOTHING, (), 50, Failing())
    first, second = BatchSampler(50).sample(np.stack([LOGITS, LOGITS]), [failing, state_of(SamplingParams())])
    assert str(first.error) == "the grammar is too large" and first.token_id == NO_TOKEN
    assert second.error is None and second.token_id == int(LOGITS.argmax())


def test_logits_that_are_no_numbers_end_their_own_reply_alone() -> None:
    rows = np.stack([LOGITS, LOGITS, LOGITS])
    rows[1, 4] = np.nan
    states = [state_of(SamplingParams(logprobs=1)) for _ in range(3)]
    sampled = BatchSampler(50).sample(rows, states)
    assert [each.error is None for each in sampled] == [True, False, True]
    assert "the engine returned logits that are not finite; run `kvfold validate`" in str(sampled[1].error)
    assert sampled[1].logprob is None and sampled[2].logprob is not None


@pytest.mark.parametrize("params", [{"logit_bias": {50: 1.0}}, {"stop_token_ids": (50,)}])
def test_a_token_id_beyond_the_vocabulary_is_refused(params: dict[str, object]) -> None:
    with pytest.raises(RequestError, match=r"token id 50 of \w+ is not in the vocabulary"):
        state_of(SamplingParams(**params))  # type: ignore[arg-type]


def test_no_replies_give_no_tokens() -> None:
    assert BatchSampler(50).sample(np.empty((0, 50), np.float32), []) == []

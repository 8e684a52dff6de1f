"""What a user calls: generate, stream and chat, their results, and their errors."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from kvfold.plugins.contract.errors import BundleError, CapacityError, EngineError, RequestError
from kvfold.runtime.llm.llm import LLM, TextOrTokens
from kvfold.runtime.loop.read_logits import read_logits
from kvfold.runtime.memory.budget import kv_cache_bytes
from kvfold.runtime.runtime_config import RuntimeConfig
from kvfold.runtime.sampling.params import SamplingParams
from tests.runtime.byte_tokenizer import VOCAB, ByteTokenizer
from tests.runtime.harness import PLANS, check, in_use, make_llm, make_prompts
from tests.runtime.synthetic_engine import SyntheticEngine, expected_tokens

HYBRID = PLANS["hybrid"]
TEXT = "Tell me of the sea."


def test_texts_and_token_ids_are_both_prompts() -> None:
    llm, _ = make_llm(HYBRID)
    ids = list(TEXT.encode())
    params = SamplingParams(max_tokens=5)
    expected = expected_tokens(HYBRID, ids, 5, VOCAB)
    each: list[TextOrTokens | Sequence[TextOrTokens]] = [TEXT, [TEXT], ids, [ids]]
    for prompts in each:
        (completion,) = llm.generate(prompts, params)
        assert completion.token_ids == expected
        assert completion.text == ByteTokenizer().decode(expected)
        assert completion.finish_reason == "length"
    both: list[TextOrTokens] = [TEXT, ids]
    assert len(llm.generate(both, [params, SamplingParams(max_tokens=1)])) == 2
    assert llm.generate([]) == []


def test_streaming_equals_generating() -> None:
    llm, _ = make_llm(HYBRID)
    params = SamplingParams(max_tokens=60, stop=("qq",))
    whole = llm.generate(TEXT, params)[0]
    chunks = list(llm.stream(TEXT, params))
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert [chunk.completion is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    last = chunks[-1].completion
    assert last is not None and last.token_ids == whole.token_ids
    assert len(chunks) > 10


def test_interleaved_streams_do_not_disturb_each_other() -> None:
    llm, _ = make_llm(HYBRID)
    params = SamplingParams(max_tokens=30)
    alone = [llm.generate(prompt, params)[0].text for prompt in make_prompts()[:3]]
    streams = [llm.stream(prompt, params) for prompt in make_prompts()[:3]]
    texts = [""] * 3
    active = set(range(3))
    while active:
        for index in sorted(active):
            chunk = next(streams[index])
            texts[index] += chunk.text
            if chunk.completion is not None:
                active.remove(index)
    assert texts == alone


def test_a_stop_text_and_an_end_token_stop() -> None:
    llm, engine = make_llm(HYBRID)
    tokens = expected_tokens(HYBRID, list(TEXT.encode()), 30, VOCAB)
    at = next(i for i in range(5, 30) if tokens[i] < 128 and tokens[i] not in tokens[:i])
    (completion,) = llm.generate(TEXT, SamplingParams(stop=(chr(tokens[at]),)))
    assert completion.finish_reason == "stop"
    assert completion.token_ids == tokens[: at + 1]
    assert completion.text == ByteTokenizer().decode(tokens[:at])
    ending = LLM(engine, ByteTokenizer([tokens[at]]), RuntimeConfig(max_num_batched_tokens=64))
    (completion,) = ending.generate(TEXT)
    assert (completion.finish_reason, completion.token_ids) == ("stop", tokens[: at + 1])
    assert completion.text == ByteTokenizer().decode(tokens[:at])
    (completion,) = ending.generate(TEXT, SamplingParams(max_tokens=30, ignore_eos=True))
    assert (completion.finish_reason, completion.token_ids) == ("length", tokens)


def test_usage_counts_what_was_computed() -> None:
    llm, engine = make_llm(HYBRID)
    (first,) = llm.generate([list(range(100))], SamplingParams(max_tokens=10))
    assert engine.tokens_computed == 109
    assert (first.usage.prefilled_tokens, first.usage.reused_tokens) == (100, 0)
    assert first.usage.time_to_first_token is not None and first.usage.time_to_first_token > 0
    assert first.usage.tokens_per_second is not None and first.usage.tokens_per_second > 0
    (again,) = llm.generate([list(range(100))], SamplingParams(max_tokens=10))
    assert engine.tokens_computed == 109 + 4 + 9
    assert (again.usage.prefilled_tokens, again.usage.reused_tokens) == (4, 96)
    metrics = llm.metrics.cache
    assert (metrics.queried_tokens, metrics.hit_tokens, metrics.too_short_tokens) == (200, 96, 0)


def test_recomputed_tokens_are_counted_apart() -> None:
    llm, engine = make_llm(PLANS["global"], pages=11, batched=24)
    completions = llm.generate(make_prompts(), SamplingParams(max_tokens=40))
    prefilled = sum(c.usage.prefilled_tokens for c in completions)
    recomputed = sum(c.usage.recomputed_tokens for c in completions)
    assert recomputed == llm.metrics.cache.recomputed_tokens > 0
    assert engine.tokens_computed == prefilled + recomputed + 39 * len(completions)
    for completion in completions:
        usage = completion.usage
        assert usage.prompt_tokens == usage.reused_tokens + usage.prefilled_tokens


def test_logprobs_come_with_each_token() -> None:
    llm, _ = make_llm(HYBRID)
    (completion,) = llm.generate(TEXT, SamplingParams(max_tokens=4, logprobs=2))
    assert completion.logprobs is not None
    assert [entry.token_id for entry in completion.logprobs] == completion.token_ids
    for entry in completion.logprobs:
        assert entry.top[0] == (entry.token_id, entry.logprob)
        assert len(entry.top) == 2 and entry.top[1][1] <= entry.logprob < 0
    assert llm.generate(TEXT)[0].logprobs is None


def test_the_reply_ends_with_the_context() -> None:
    llm, _ = make_llm(HYBRID, context=100)
    (completion,) = llm.generate([list(range(95))], SamplingParams(max_tokens=50))
    assert completion.finish_reason == "length"
    assert completion.token_ids == expected_tokens(HYBRID, range(95), 5, VOCAB)


def test_chats_share_a_system_prompt() -> None:
    llm, _ = make_llm(HYBRID)
    system = {"role": "system", "content": "You answer in few words and never guess. " * 2}
    params = SamplingParams(max_tokens=60)
    # The marked end of the system prompt is at 94 tokens. The second chat leaves the tree only after
    # the next page, and caches that branch point for the third.
    for question, reused in [("Why is the sky blue? " * 3, 0), ("Name a fish.", 80), ("Count to ten.", 96)]:
        completion = llm.chat([system, {"role": "user", "content": question}], params)
        assert completion.usage.reused_tokens == reused
    assert llm.metrics.cache.too_short_tokens == 16
    check(llm)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("", "no tokens"),
        ([[]], "no tokens"),
        ([[1, -5]], r"token id -5 at position 1"),
        ([[1, 2, VOCAB]], rf"token id {VOCAB} at position 2"),
        ([list(range(200))], "200 tokens, the context 150"),
        ([[1, "a"]], "list of token ids"),
        ([2**64], rf"token id {2**64} is in no vocabulary"),
        ([[1, -(2**70)]], rf"token id -{2**70} is in no vocabulary"),
        ([1, "a"], "mix token ids and texts"),
    ],
)
def test_a_bad_prompt_is_refused_with_its_value(prompts: Any, message: str) -> None:
    llm, engine = make_llm(HYBRID, context=150)
    with pytest.raises(RequestError, match=message):
        llm.generate(prompts)
    assert engine.steps == 0 and in_use(llm) == 0


def test_one_bad_prompt_leaves_nothing_behind() -> None:
    llm, _ = make_llm(HYBRID)
    with pytest.raises(RequestError):
        llm.generate(["fine", ""])
    assert not llm.generator.loop.core.scheduler.has_work
    with pytest.raises(RequestError, match="2 prompts came with 1"):
        llm.generate(["a", "b"], [SamplingParams()])


def test_a_request_larger_than_the_pool_is_refused_at_submission() -> None:
    llm, engine = make_llm(PLANS["global"], pages=8)
    with pytest.raises(CapacityError, match="needs 2,304 bytes of KV pages, kv_cache_bytes is 2,048"):
        llm.generate([list(range(100))], SamplingParams(max_tokens=40))
    with pytest.raises(CapacityError):
        llm.stream(list(range(100)), SamplingParams(max_tokens=40))
    assert engine.steps == 0
    assert llm.generate([list(range(100))], SamplingParams(max_tokens=28))[0].finish_reason == "length"


class BrokenEngine(SyntheticEngine):
    """Fails in its fifth step."""

    def execute(self, step: Any) -> np.ndarray:
        if self.steps == 4:
            self.steps += 1
            raise RuntimeError("out of order")
        return super().execute(step)


def test_an_engine_that_fails_leaves_no_pages_behind() -> None:
    engine = BrokenEngine(HYBRID, vocab=VOCAB)
    llm = LLM(engine, ByteTokenizer(()), RuntimeConfig(max_num_batched_tokens=32))
    with pytest.raises(EngineError, match="out of order"):
        llm.generate(make_prompts())
    assert in_use(llm) == 0 and not llm.generator.loop.core.scheduler.has_work
    check(llm)
    with pytest.raises(EngineError, match="load it again"):
        llm.generate(TEXT)
    assert engine.steps == 5, "an engine that failed is asked no more"


def test_a_dropped_stream_gives_everything_back() -> None:
    llm, _ = make_llm(HYBRID)
    stream = llm.stream(TEXT * 3, SamplingParams(max_tokens=50))
    next(stream)
    assert in_use(llm) > 0
    stream.close()
    assert in_use(llm) == 0
    check(llm)
    unused = llm.stream(TEXT)
    del unused
    assert not llm.generator.loop.core.scheduler.has_work


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv_cache_bytes": 0}, "kv_cache_bytes is 0"),
        ({"max_num_seqs": 0}, "max_num_seqs is 0"),
        ({"max_num_batched_tokens": 4}, "below max_num_seqs 8"),
        ({"threads": -1}, "threads is -1"),
    ],
)
def test_a_bad_config_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        RuntimeConfig(**options)


def test_a_budget_too_small_for_a_step_is_refused() -> None:
    with pytest.raises(CapacityError, match="raise kv_cache_bytes"):
        kv_cache_bytes(
            HYBRID, {each.name: 1 for each in HYBRID.groups}, RuntimeConfig(kv_cache_bytes=99), 512
        )


def test_loading_nothing_says_so(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(BundleError, match="no bundle"):
        LLM.load(tmp_path_factory.mktemp("empty"))


def test_many_threads_may_use_one_llm() -> None:
    llm, engine = make_llm(HYBRID, pages=200)
    prompts = make_prompts()

    def ask(number: int) -> tuple[int, list[int]]:
        which = number % len(prompts)
        if number % 3:
            return which, llm.generate([prompts[which]], SamplingParams(max_tokens=9))[0].token_ids
        *_, last = llm.stream(prompts[which], SamplingParams(max_tokens=9))
        assert last.completion is not None
        return which, last.completion.token_ids

    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(ask, range(48)))
    for which, tokens in replies:
        assert tokens == expected_tokens(HYBRID, prompts[which], 9, VOCAB)
    assert engine.largest_batch > 1, "the threads' requests never ran together"
    assert in_use(llm) == 0
    check(llm)


def test_scores_are_log_probabilities_whatever_the_cache_holds() -> None:
    llm, engine = make_llm(PLANS["global"], batched=16)
    tokens = make_prompts()[0]
    cold = llm.score(tokens)
    assert cold.shape == (len(tokens) - 1,) and (cold < 0).all()
    computed = engine.tokens_computed
    warm = llm.score(tokens, first=70)
    assert engine.tokens_computed - computed <= len(tokens) - 64, "what comes before is in the cache"
    assert np.array_equal(warm, cold[69:])
    rows = np.concatenate(
        [rows.astype(np.float64) for _, rows in read_logits(llm.generator.loop, np.array(tokens))]
    )
    expected = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
    assert np.allclose(cold, expected[np.arange(len(tokens) - 1), tokens[1:]], rtol=0, atol=1e-6)
    assert in_use(llm) == 0
    check(llm)


@pytest.mark.parametrize("first", [0, 103, 200])
def test_a_token_without_a_score_is_refused(first: int) -> None:
    llm, _ = make_llm(HYBRID)
    with pytest.raises(RequestError, match=f"first is {first}"):
        llm.score(make_prompts()[0], first=first)

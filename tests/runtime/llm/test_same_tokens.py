"""cold == warm == chunked == batched == the definition, for every kind of plan."""

from __future__ import annotations

from functools import cache

import pytest

from kvfold.runtime.sampling.params import SamplingParams
from tests.runtime.byte_tokenizer import VOCAB
from tests.runtime.harness import PLANS, check, in_use, make_llm, make_prompts
from tests.runtime.synthetic_engine import expected_tokens

GREEDY = SamplingParams(max_tokens=40)


@cache
def definition(name: str) -> list[list[int]]:
    return [expected_tokens(PLANS[name], prompt, 40, VOCAB) for prompt in make_prompts()]


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("batched", [4, 23, 256])
def test_batched_and_chunked_follow_the_definition_cold_and_warm(name: str, batched: int) -> None:
    llm, engine = make_llm(PLANS[name], batched=batched)
    for _ in range(2):
        completions = llm.generate(make_prompts(), GREEDY)
        assert [completion.token_ids for completion in completions] == definition(name)
        check(llm)
        assert in_use(llm) == 0
    assert engine.largest_batch > 1
    assert sum(completion.usage.reused_tokens for completion in completions) > 0


@pytest.mark.parametrize("name", PLANS)
def test_one_by_one_follows_the_definition(name: str) -> None:
    llm, _ = make_llm(PLANS[name])
    for prompt, expected in zip(make_prompts(), definition(name), strict=True):
        assert llm.generate(prompt, GREEDY)[0].token_ids == expected
        check(llm)


@pytest.mark.parametrize("name", PLANS)
def test_a_full_pool_queues_and_preempts_without_changing_a_token(name: str) -> None:
    llm, _ = make_llm(PLANS[name], pages=11, batched=24)
    completions = llm.generate(make_prompts(), GREEDY)
    assert [completion.token_ids for completion in completions] == definition(name)
    check(llm)
    assert in_use(llm) == 0
    if name == "global":
        assert llm.metrics.cache.preemptions > 0
        assert llm.metrics.evicted_pages > 0


def test_sampled_tokens_do_not_depend_on_the_batch() -> None:
    params = [SamplingParams(temperature=0.8, top_p=0.9, seed=seed, max_tokens=12) for seed in range(8)]
    llm, _ = make_llm(PLANS["hybrid"])
    together = llm.generate(make_prompts(), params)
    llm, _ = make_llm(PLANS["hybrid"], pages=11, batched=17)
    crowded = llm.generate(make_prompts(), params)
    llm, _ = make_llm(PLANS["hybrid"])
    alone = [llm.generate(prompt, one)[0] for prompt, one in zip(make_prompts(), params, strict=True)]
    assert [c.token_ids for c in together] == [c.token_ids for c in alone] == [c.token_ids for c in crowded]

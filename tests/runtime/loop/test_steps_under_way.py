"""The loop counts a step while it is under way: tokens, pages and ends are those of an engine that waits."""

from __future__ import annotations

import pytest

from kvfold.runtime.sampling.params import SamplingParams
from tests.runtime.harness import PLANS, check, make_llm, make_prompts
from tests.runtime.loop.deferred_engine import DeferredEngine
from tests.runtime.synthetic_engine import SyntheticEngine


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("pages", [20, 64])
def test_tokens_and_pages_are_the_same_with_and_without_overlap(name: str, pages: int) -> None:
    params = SamplingParams(max_tokens=20, temperature=0.8, seed=5, prompt_logprobs=1)
    told = []
    for kind in (SyntheticEngine, DeferredEngine):
        llm, engine = make_llm(PLANS[name], pages, batched=48, kind=kind)
        replies = llm.generate(make_prompts(), params)
        told.append([(reply.token_ids, reply.prompt_logprobs, reply.finish_reason) for reply in replies])
        check(llm)
    assert told[0] == told[1]
    assert isinstance(engine, DeferredEngine) and engine.deferred == engine.steps > 0

"""Prefixes that a tier holds: who finds them, what they save, and what happens where it does not help."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest

from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.runtime.llm.llm import LLM
from kvfold.runtime.memory import tier_link
from kvfold.runtime.memory.tier_link import TierLink
from kvfold.runtime.memory.tiers.chain import Chain
from kvfold.runtime.memory.tiers.layout import TierLayout
from kvfold.runtime.memory.tiers.object_tier import DirectoryTier, HostTier, ObjectTier
from kvfold.runtime.memory.tiers.prefix import LoadedPrefix, TierLimits
from kvfold.runtime.sampling.params import SamplingParams
from kvfold.runtime.scheduler.request import Prompt
from tests.runtime.byte_tokenizer import VOCAB
from tests.runtime.harness import PLANS, check, in_use, make_llm
from tests.runtime.synthetic_engine import expected_tokens

PROMPT = np.random.default_rng(5).integers(0, 256, 300).tolist()
LIMITS = TierLimits(1 << 24)


def make_tier(plan: FoldPlan, kind: type[HostTier] = HostTier) -> HostTier:
    layout = TierLayout.of(plan)
    return kind(layout, layout.root_key("model", "kernels"), LIMITS)


def open_directory(plan: FoldPlan, directory: Path, limits: TierLimits = LIMITS) -> ObjectTier:
    layout = TierLayout.of(plan)
    tier = DirectoryTier(directory, layout, layout.root_key("model", "kernels"), limits)
    tier.refresh()
    assert tier.flush(10)
    return tier


def ask(llm: LLM, prompt: list[int], count: int = 6, tenant: str = "") -> int:
    """Tokens of a prompt that were reused; its reply must be what the definition says."""
    reply = llm.generator.prepare(Prompt(np.array(prompt), tenant=tenant), SamplingParams(max_tokens=count))
    completion = llm.generator.run([reply])[0]
    plan = llm.generator.loop.info.plan
    assert list(completion.token_ids) == expected_tokens(plan, prompt, count, VOCAB)
    check(llm)
    return completion.usage.reused_tokens


@pytest.mark.parametrize("name", PLANS)
def test_another_process_goes_on_with_a_conversation(name: str, tmp_path: Path) -> None:
    plan = PLANS[name]
    tier = open_directory(plan, tmp_path / "kv")
    first, _ = make_llm(plan, tier=tier)
    assert ask(first, PROMPT) == 0
    assert tier.close()
    known = PROMPT + expected_tokens(plan, PROMPT, 6, VOCAB)
    tier = open_directory(plan, tmp_path / "kv")
    second, engine = make_llm(plan, tier=tier)
    assert ask(second, [*known, 1, 2, 3]) == 304
    assert engine.tokens_computed <= len(known) + 3 - 304 + 6
    assert second.metrics.cache.loaded_tokens == 304 and in_use(second) == 0
    assert ask(second, [*known, 4, 5]) == 304, "the second time it is in the pools"
    assert second.metrics.cache.loaded_tokens == 304
    tier.close()


@pytest.mark.parametrize("name", PLANS)
def test_another_tenant_finds_nothing(name: str) -> None:
    tier = make_tier(PLANS[name])
    first, _ = make_llm(PLANS[name], tier=tier)
    ask(first, PROMPT, tenant="one")
    assert tier.flush(10)
    second, _ = make_llm(PLANS[name], tier=tier)
    assert ask(second, PROMPT, tenant="two") == 0
    assert ask(second, [*PROMPT, *expected_tokens(PLANS[name], PROMPT, 6, VOCAB)], tenant="one") == 304
    tier.close()


def test_what_pools_gave_up_comes_from_the_tier() -> None:
    plan = PLANS["hybrid"]
    tier = make_tier(plan)
    llm, _ = make_llm(plan, pages=24, tier=tier)
    ask(llm, PROMPT)
    known = PROMPT + expected_tokens(plan, PROMPT, 6, VOCAB)
    for seed in range(9):
        ask(llm, np.random.default_rng(seed).integers(0, 256, 200).tolist())
    assert tier.flush(10)
    assert ask(llm, known) == 304 == llm.metrics.cache.loaded_tokens
    tier.close()


def test_a_prefix_that_does_not_fit_is_computed() -> None:
    plan = PLANS["global"]
    tier = make_tier(plan)
    first, _ = make_llm(plan, tier=tier)
    ask(first, PROMPT)
    assert tier.flush(10)
    small, _ = make_llm(plan, pages=25, seqs=2, tier=tier)
    prompts = [[1] * 60, [2] * 60, PROMPT]
    replies = [
        small.generator.prepare(Prompt(np.array(each)), SamplingParams(max_tokens=20)) for each in prompts
    ]
    for completion, prompt in zip(small.generator.run(replies), prompts, strict=True):
        assert list(completion.token_ids) == expected_tokens(plan, prompt, 20, VOCAB)
    check(small)
    tier.close()


def test_what_the_tree_has_is_not_replaced() -> None:
    """The tier knows a page more: that one comes, and nothing goes for it."""
    plan = PLANS["global"]
    tier = make_tier(plan)
    first, _ = make_llm(plan, tier=tier)
    ask(first, PROMPT)
    assert tier.flush(10)
    known = PROMPT + expected_tokens(plan, PROMPT, 6, VOCAB)
    second, _ = make_llm(plan, pages=22)
    ask(second, PROMPT[:290])
    memory = second.generator.loop.core.scheduler.memory
    memory.link = TierLink(
        tier, memory.horizons, memory.arena.page_bytes, second.generator.loop.core.engine.pages
    )
    assert ask(second, known) == 304 and second.metrics.evicted_pages == 0
    tier.close()


def test_prefixes_are_taken_in_when_it_is_their_turn() -> None:
    """Four prefixes, room for one: each is used before the next one takes its place."""
    plan = PLANS["global"]
    tier = make_tier(plan)
    prompts = [np.random.default_rng(seed).integers(0, 256, 300).tolist() for seed in range(4)]
    first, _ = make_llm(plan, pages=200, tier=tier)
    for each in prompts:
        ask(first, each)
    assert tier.flush(10)
    second, _ = make_llm(plan, pages=22, seqs=1, tier=tier)
    known = [each + expected_tokens(plan, each, 6, VOCAB) for each in prompts]
    replies = [
        second.generator.prepare(Prompt(np.array(each)), SamplingParams(max_tokens=3)) for each in known
    ]
    completions = second.generator.run(replies)
    assert [each.usage.reused_tokens for each in completions] == [304] * 4
    tier.close()


def test_what_a_preempted_request_lost_comes_from_the_tier() -> None:
    plan = PLANS["global"]
    tier = make_tier(plan)
    llm, _ = make_llm(plan, pages=17, batched=64, tier=tier)
    loop, prompts = llm.generator.loop, [[1] * 60, [2] * 90]
    replies = [
        llm.generator.prepare(Prompt(np.array(each)), SamplingParams(max_tokens=count))
        for each, count in zip(prompts, (200, 60), strict=True)
    ]
    for reply in replies:
        loop.submit(reply.ticket)
    loop.settle()
    while loop.core.scheduler.has_work:
        loop.turn()
        assert tier.flush(10)
    metrics = llm.metrics.cache
    assert metrics.preemptions and llm.metrics.evicted_pages, "its pages went for the older request's"
    assert metrics.loaded_tokens >= 64 and metrics.recomputed_tokens < 64
    for prompt, reply, count in zip(prompts, replies, (200, 60), strict=True):
        assert list(reply.completion().token_ids) == expected_tokens(plan, prompt, count, VOCAB)
    check(llm)
    tier.close()


class Stuck(HostTier):
    """Knows all, and gives nothing."""

    def find(self, chain: Chain, tokens: np.ndarray, max_pages: int) -> int:
        return max_pages

    def load(self, chain: Chain, tokens: np.ndarray, pages: int) -> Future[LoadedPrefix | None]:
        return Future()


def test_a_tier_that_hangs_delays_a_request_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tier_link, "MOST_SECONDS", 0.2)
    tier = make_tier(PLANS["hybrid"], Stuck)
    llm, _ = make_llm(PLANS["hybrid"], tier=tier)
    assert ask(llm, PROMPT) == 0
    reply = llm.generator.prepare(Prompt(np.array(PROMPT[::-1])), SamplingParams(max_tokens=3))
    llm.generator.loop.submit(reply.ticket)
    llm.generator.loop.turn()
    llm.generator.loop.core.cancel(reply.ticket, "client")
    assert not llm.generator.loop.core.scheduler.has_work
    check(llm)
    tier.close()

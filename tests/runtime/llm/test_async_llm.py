"""Tasks and threads beside each other on one engine thread: nobody waits for another, and nothing is lost."""

from __future__ import annotations

import asyncio
import random
from time import sleep

import numpy as np
import pytest

from kvfold.plugins.contract.errors import CapacityError, EngineError, RequestError
from kvfold.runtime.engine.protocol import StepInputs
from kvfold.runtime.llm.async_llm import AsyncLLM
from kvfold.runtime.llm.async_reply import AsyncReply
from kvfold.runtime.llm.llm import LLM
from kvfold.runtime.loop.ticket import Service
from kvfold.runtime.runtime_config import RuntimeConfig
from kvfold.runtime.sampling.params import SamplingParams
from tests.runtime.byte_tokenizer import VOCAB, ByteTokenizer
from tests.runtime.harness import PLANS, make_llm, make_prompts
from tests.runtime.llm.async_harness import PLAN, Slow, make_slow, prompt, run
from tests.runtime.synthetic_engine import SyntheticEngine, expected_tokens

PROMPTS = make_prompts()


async def read(reply: AsyncReply) -> list[int]:
    tokens: list[int] = []
    text = ""
    async for chunk in reply:
        tokens += chunk.token_ids
        text += chunk.text
        if chunk.completion is not None:
            assert chunk.completion.text == text
            assert chunk.completion.token_ids == tokens
    return tokens


def test_tasks_and_threads_share_one_engine() -> None:
    async def work(served: AsyncLLM) -> None:
        params = SamplingParams(max_tokens=9)
        tasks = [read(served.submit(prompt(PROMPTS[n % 8]), params)) for n in range(40)]
        threads = [asyncio.to_thread(served.llm.generate, [PROMPTS[n % 8]], params) for n in range(20)]
        found = await asyncio.gather(*tasks)
        for n, tokens in enumerate(found):
            assert tokens == expected_tokens(PLAN, PROMPTS[n % 8], 9, VOCAB)
        for n, (completion,) in enumerate(await asyncio.gather(*threads)):
            assert completion.token_ids == expected_tokens(PLAN, PROMPTS[n % 8], 9, VOCAB)
        assert engine.largest_batch > 1

    llm, engine = make_llm(PLAN, pages=200)
    run(llm, work)


def test_a_cancelled_reply_ends_with_what_was_said() -> None:
    async def work(served: AsyncLLM) -> None:
        reply = served.submit(prompt(PROMPTS[0]), SamplingParams(max_tokens=300))
        first = await anext(reply)
        reply.cancel()
        completion = await reply.completion()
        assert completion.finish_reason == "cancelled" and completion.cancel_reason == "client"
        assert completion.token_ids[: len(first.token_ids)] == list(first.token_ids)
        assert len(completion.token_ids) < 300

    run(make_slow(), work)


def test_a_reply_that_is_dropped_is_cancelled() -> None:
    async def work(served: AsyncLLM) -> None:
        reply = served.submit(prompt(PROMPTS[0]), SamplingParams(max_tokens=300))
        await anext(reply)
        del reply
        waiting = asyncio.create_task(read(served.submit(prompt(PROMPTS[1]), SamplingParams(max_tokens=300))))
        await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        for _ in range(100):
            if not served.snapshot().busy:
                break
            await asyncio.sleep(0.01)
        assert not served.snapshot().busy

    run(make_slow(), work)


def test_a_slow_reader_gets_all_at_once() -> None:
    async def work(served: AsyncLLM) -> None:
        reply = served.submit(prompt(PROMPTS[0]), SamplingParams(max_tokens=20))
        while served.snapshot().busy or not served.snapshot().steps:
            await asyncio.sleep(0.01)
        assert reply.unread_characters > 0
        pieces = [piece async for piece in reply]
        assert len(pieces) == 1 and len(pieces[0].token_ids) == 20

    llm, _ = make_llm(PLAN)
    run(llm, work)


def test_several_replies_to_a_prompt_compute_it_once() -> None:
    async def work(served: AsyncLLM) -> None:
        several = [SamplingParams(temperature=1, seed=seed, max_tokens=6) for seed in range(4)]
        replies = served.submit_several(prompt(PROMPTS[0]), several)
        together = [(await reply.completion()) for reply in replies]
        assert [each.usage.reused_tokens for each in together] == [0, 96, 96, 96]
        for params, each in zip(several, together, strict=True):
            alone = await served.generate(prompt(PROMPTS[0]), params)
            assert alone.token_ids == each.token_ids

    llm, _ = make_llm(PLAN, pages=200)
    run(llm, work)


def test_several_replies_share_a_cache_that_holds_one_at_a_time() -> None:
    async def work(served: AsyncLLM) -> None:
        several = [SamplingParams(temperature=1, seed=seed, max_tokens=60) for seed in range(6)]
        together = [await reply.completion() for reply in served.submit_several(prompt([5] * 60), several)]
        for params, each in zip(several, together, strict=True):
            alone = await served.generate(prompt([5] * 60), params)
            assert each.token_ids == alone.token_ids and each.finish_reason == "length"

    llm, _ = make_llm(PLANS["global"], pages=11, batched=32, seqs=6)
    run(llm, work)
    assert llm.metrics.cache.preemptions > 0, "the cache was not small enough to show it"


def test_bad_requests_are_refused_at_once_and_nobody_else_notices() -> None:
    async def work(served: AsyncLLM) -> None:
        well = served.submit(prompt(PROMPTS[0]), SamplingParams(max_tokens=20))
        with pytest.raises(RequestError, match="not in the vocabulary"):
            served.submit(prompt([1, VOCAB]), SamplingParams())
        with pytest.raises(RequestError, match="shorten the prompt"):
            served.submit(prompt([1] * 600), SamplingParams())
        with pytest.raises(CapacityError):
            served.submit(prompt([1] * 300), SamplingParams(max_tokens=200))
        assert await read(well) == expected_tokens(PLAN, PROMPTS[0], 20, VOCAB)

    llm, _ = make_llm(PLAN, pages=12)
    run(llm, work)


def test_a_deadline_is_kept() -> None:
    async def work(served: AsyncLLM) -> None:
        service = Service(deadline=0.05)
        completion = await served.generate(prompt(PROMPTS[0]), SamplingParams(max_tokens=300), service)
        assert completion.cancel_reason == "deadline" and 0 < len(completion.token_ids) < 300

    run(make_slow(), work)


class Failing(Slow):
    """Fails in its sixth step."""

    def execute(self, step: StepInputs) -> np.ndarray:
        if self.steps == 5:
            raise RuntimeError("the card fell off the bus")
        return super().execute(step)


def test_an_engine_that_fails_ends_every_reply_with_an_error() -> None:
    async def work(served: AsyncLLM) -> None:
        params = SamplingParams(max_tokens=50)
        tasks = [read(served.submit(prompt(ids), params)) for ids in PROMPTS]
        threads = [asyncio.to_thread(served.llm.generate, [ids], params) for ids in PROMPTS]
        found = await asyncio.gather(*tasks, *threads, return_exceptions=True)
        assert all(isinstance(each, EngineError) and "fell off" in str(each) for each in found)
        assert served.failure is not None
        with pytest.raises(EngineError, match="fell off"):
            served.submit(prompt(PROMPTS[0]), params)

    run(make_slow(Failing), work)


def test_a_drain_waits_then_cancels() -> None:
    async def work(served: AsyncLLM) -> None:
        short = asyncio.create_task(
            served.submit(prompt(PROMPTS[0]), SamplingParams(max_tokens=5)).completion()
        )
        long = asyncio.create_task(
            served.submit(prompt(PROMPTS[1]), SamplingParams(max_tokens=400)).completion()
        )
        await asyncio.sleep(0)
        await served.drain(0.2)
        with pytest.raises(EngineError, match="closing"):
            served.submit(prompt(PROMPTS[0]), SamplingParams())
        assert (await short).finish_reason == "length"
        assert (await long).cancel_reason == "drain"

    run(make_slow(), work)


def test_a_thousand_random_aborts_lose_no_page() -> None:
    async def work(served: AsyncLLM) -> None:
        rng = random.Random(7)

        async def one(number: int) -> None:
            ids = PROMPTS[number % 8]
            service = Service(priority=number % 3, deadline=rng.choice([None, 0.01, 1.0]))
            reply = served.submit(prompt(ids), SamplingParams(max_tokens=40), service)
            how = rng.randrange(4)
            for _ in range(rng.randrange(6)):
                if (await anext(reply, None)) is None:
                    return
            if how == 0:
                reply.cancel()
                await reply.completion()
            elif how == 1:
                await asyncio.sleep(rng.random() / 100)
            elif how == 2:
                await reply.completion()

        for _ in range(20):
            await asyncio.gather(*(one(number) for number in range(50)), return_exceptions=False)

    llm, _ = make_llm(PLAN, pages=40, batched=48, seqs=6)
    run(llm, work)


def test_a_prompt_does_not_stall_what_runs() -> None:
    class Timed(SyntheticEngine):
        """A millisecond, and a fifth of one for each token."""

        longest = 0.0

        def execute(self, step: StepInputs) -> np.ndarray:
            seconds = 0.001 + len(step.input_ids) / 5000
            if len(step.past_seqlens) > 1:
                self.longest = max(self.longest, seconds)
            sleep(seconds)
            return super().execute(step)

    async def work(served: AsyncLLM) -> None:
        await served.generate(prompt([3] * 200), SamplingParams(max_tokens=4))  # the pace is known then
        running = served.submit(prompt(PROMPTS[4]), SamplingParams(max_tokens=60))
        await anext(running)
        await served.generate(prompt([7] * 400), SamplingParams(max_tokens=2))
        await running.completion()

    engine = Timed(PLAN, 200, vocab=VOCAB)
    config = RuntimeConfig(max_num_batched_tokens=256, inter_token_target=0.02)
    run(LLM(engine, ByteTokenizer(()), config), work)
    assert 0.005 < engine.longest < 0.03

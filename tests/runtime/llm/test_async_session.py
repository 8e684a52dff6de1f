"""Conversations of tasks and of threads on one engine thread."""

from __future__ import annotations

import asyncio

import pytest

from kvfold.plugins.contract.errors import RequestError
from kvfold.runtime.llm.async_llm import AsyncLLM
from kvfold.runtime.sampling.params import SamplingParams
from tests.runtime.harness import make_llm, make_prompts
from tests.runtime.llm.async_harness import PLAN, make_slow, prompt, run

PROMPTS = make_prompts()


def test_a_session_of_a_thread_goes_on_beside_tasks() -> None:
    async def work(served: AsyncLLM) -> None:
        def talk() -> list[int]:
            with served.llm.session("Be brief.") as session:
                return [
                    session.send("Go on.", SamplingParams(max_tokens=5)).usage.reused_tokens for _ in range(3)
                ]

        talks = [asyncio.create_task(asyncio.to_thread(talk)) for _ in range(4)]
        others = [served.generate(prompt(PROMPTS[0]), SamplingParams(max_tokens=30)) for _ in range(4)]
        await asyncio.gather(*others)
        reused = await asyncio.gather(*talks)
        assert all(turns[1] > 0 and turns[2] > turns[1] for turns in reused)

    llm, _ = make_llm(PLAN, pages=300, seqs=8)
    run(llm, work)
    assert llm.metrics.cache.resumed_turns == 8


def test_a_session_of_a_task_pays_for_its_new_tokens_only() -> None:
    async def work(served: AsyncLLM) -> None:
        params = SamplingParams(max_tokens=5)

        async def talk(name: str) -> list[int]:
            async with served.session(f"You are {name}.") as session:
                reused = [(await session.send("Go on.", params)).usage.reused_tokens for _ in range(3)]
                stream = session.stream("And now?", SamplingParams(max_tokens=100))
                await anext(stream)
                with pytest.raises(RequestError, match="still streaming"):
                    await session.send("And then?", params)
                await stream.aclose()
                assert len(session.messages) == 7, "a turn that nobody reads to its end is undone"
                return reused

        for reused in await asyncio.gather(*(talk(name) for name in ("Ada", "Bob", "Cleo"))):
            assert 0 < reused[1] < reused[2]

    run(make_slow(), work)


def test_a_turn_that_nobody_reads_to_its_end_gives_its_pages_back() -> None:
    async def work(served: AsyncLLM) -> None:
        async with served.session() as session:
            stream = session.stream("Hi.", SamplingParams(max_tokens=3))
            await anext(stream)
            while served.snapshot().busy:
                await asyncio.sleep(0.01)
            await stream.aclose()

    for _ in range(5):
        run(make_slow(), work)

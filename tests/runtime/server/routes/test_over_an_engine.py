"""The APIs over AsyncLLM and the synthetic engine: what is reused, and that no page is lost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from time import sleep
from typing import Any

import numpy as np
from msgspec.json import encode

from kvfold.runtime.engine.protocol import StepInputs
from kvfold.runtime.llm.async_llm import AsyncLLM
from kvfold.runtime.llm.llm import LLM
from kvfold.runtime.runtime_config import RuntimeConfig
from kvfold.runtime.server.app import Application
from kvfold.runtime.server.guard.admission_limits import AdmissionLimits
from kvfold.runtime.server.guard.gate import Gate
from kvfold.runtime.server.route_table import Routes
from kvfold.runtime.server.routes.api import api_routes
from kvfold.runtime.server.state import ServerState
from tests.runtime.byte_tokenizer import VOCAB, ByteTokenizer
from tests.runtime.harness import PLANS, check, in_use
from tests.runtime.server.asgi_client import JSON, Exchange, ask, until
from tests.runtime.server.routes.ask_server import chat
from tests.runtime.synthetic_engine import SyntheticEngine

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
SESSIONS = "/v1/kvfold/sessions"
GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 8}


class Latin(ByteTokenizer):
    """Any bytes are a text, and the text is those bytes again."""

    charset = "latin-1"


class Slow(SyntheticEngine):
    """Takes a millisecond a step."""

    def execute(self, step: StepInputs) -> np.ndarray:
        sleep(0.001)
        return super().execute(step)


class Served:
    """The application while its engine runs."""

    def __init__(self, llm: AsyncLLM) -> None:
        self.llm = llm
        state = ServerState("tiny", Gate(), AdmissionLimits(64, 256))
        state.loaded(llm, None)
        self.app = Application(Routes(api_routes(state)), state)

    async def post(self, path: str, body: Any, session: str | None = None) -> dict[str, Any]:
        answer = await ask(self.app, "POST", path, body, {"x-session-id": session} if session else {})
        assert answer.status == 200, answer.body
        found: dict[str, Any] = answer.json()
        return found

    def open(self, path: str, body: bytes, session: str | None = None) -> Exchange:
        return Exchange(self.app, "POST", path, body, JSON | ({"x-session-id": session} if session else {}))


def run(work: Callable[[Served], Awaitable[None]], plan: str = "hybrid", pages: int = 400) -> LLM:
    """Work with a server, whose engine then holds nothing but what it caches."""
    engine = Slow(PLANS[plan], pages, vocab=VOCAB, context=512)
    llm = LLM(engine, Latin(()), RuntimeConfig(max_num_batched_tokens=64, max_num_seqs=4))

    async def inside() -> None:
        async with AsyncLLM(llm) as engine:
            await asyncio.wait_for(work(Served(engine)), 60)

    asyncio.run(inside())
    check(llm)
    return llm


def cached(answer: dict[str, Any]) -> int:
    found: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return found


def text(answer: dict[str, Any]) -> str:
    found: str = answer["choices"][0]["message"]["content"]
    return found


def test_a_session_s_turn_reuses_all_of_the_last_one_to_the_token() -> None:
    async def work(server: Served) -> None:
        said = ["Hi"]
        before = 0
        for turn in range(4):
            answer = await server.post(CHAT, chat(*said, **GREEDY), "s")
            # The last token of a reply was sampled, and never computed.
            assert cached(answer) == (before - 1 if turn else 0)
            before = answer["usage"]["total_tokens"]
            said += [text(answer), f"And {turn}?"]
        view = await ask(server.app, "GET", f"{SESSIONS}/s")
        assert (view.json()["turns"], view.json()["rematched"], view.json()["tokens"]) == (4, 0, before)
        assert (await ask(server.app, "DELETE", f"{SESSIONS}/s")).status == 200

    llm = run(work)
    assert in_use(llm) == 0


def test_without_a_session_the_tree_finds_whole_pages() -> None:
    async def work(server: Served) -> None:
        first = await server.post(CHAT, chat("x" * 60, **GREEDY))
        again = await server.post(CHAT, chat("x" * 60, text(first), "And?", **GREEDY))
        assert 0 < cached(again) <= first["usage"]["total_tokens"]
        assert cached(again) % server.llm.page_size == 0

    assert in_use(run(work, "global")) == 0


def test_replies_with_a_session_are_those_without() -> None:
    async def work(server: Served) -> None:
        said = ["Hi"]
        for _ in range(3):
            kept = await server.post(CHAT, chat(*said, **GREEDY), "s")
            cold = await server.post(CHAT, chat(*said, **GREEDY))
            assert text(kept) == text(cold)
            said += [text(kept), "And?"]

    run(work, "many")


def test_a_response_goes_on_from_the_last_one_s_tokens() -> None:
    async def work(server: Served) -> None:
        body = {"temperature": 0, "max_output_tokens": 8}
        first = await server.post(RESPONSES, {"input": "Hi", **body})
        second = await server.post(RESPONSES, {"input": "And?", "previous_response_id": first["id"], **body})
        assert second["usage"]["input_tokens_details"]["cached_tokens"] == first["usage"]["total_tokens"] - 1
        for one in (first, second):
            assert (await ask(server.app, "DELETE", f"{RESPONSES}/{one['id']}")).status == 200

    assert in_use(run(work)) == 0


def test_several_replies_pay_for_one_prompt() -> None:
    async def work(server: Served) -> None:
        answer = await server.post(CHAT, chat("x" * 60, n=4, seed=1, max_tokens=8))
        assert len({choice["message"]["content"] for choice in answer["choices"]}) == 4
        metrics = server.llm.llm.metrics.cache
        assert metrics.hit_tokens > 2 * 60

    run(work, "global")


def test_a_prompt_is_scored_with_its_reply() -> None:
    async def work(server: Served) -> None:
        body = {"prompt": [72, 105, 63], "echo": True, "logprobs": 2, **GREEDY}
        (choice,) = (await server.post(COMPLETIONS, body))["choices"]
        found = choice["logprobs"]
        assert len(found["tokens"]) == 3 + 8
        assert found["token_logprobs"][0] is None and all(value < 0 for value in found["token_logprobs"][1:])
        (alone,) = (await server.post(COMPLETIONS, body | {"max_tokens": 0}))["choices"]
        assert alone["logprobs"]["token_logprobs"] == found["token_logprobs"][:3]

    run(work)


def test_a_client_that_leaves_gives_its_pages_back_also_those_of_a_session() -> None:
    async def work(server: Served) -> None:
        for session in (None, "s"):
            body = chat("Hi", stream=True, max_tokens=400)
            exchange = server.open(CHAT, encode(body), session)
            answer = exchange.answer
            while answer.body.count(b"content") < 2:
                await asyncio.sleep(0)
            assert server.llm.snapshot().busy
            exchange.leave()
            await exchange.end()
            await until(lambda: in_use(server.llm.llm) == 0)

    run(work)


def test_a_turn_whose_deadline_came_before_its_first_step_leaves_the_pages_to_the_next() -> None:
    async def work(server: Served) -> None:
        first = await server.post(CHAT, chat("Hi", **GREEDY), "s")
        others = [
            server.open(CHAT, encode(chat(f"{at}", stream=True, max_tokens=400, ignore_eos=True)))
            for at in range(4)
        ]
        await until(lambda: server.llm.snapshot().running == 4)
        late = await server.post(CHAT, chat("Hi", text(first), "And?", timeout=0.02, **GREEDY), "s")
        assert late["usage"]["completion_tokens"] == 0
        for other in others:
            other.leave()
            await other.end()
        again = await server.post(CHAT, chat("Hi", text(first), "And?", "", "So?", **GREEDY), "s")
        assert cached(again) == first["usage"]["total_tokens"] - 1
        assert (await ask(server.app, "DELETE", f"{SESSIONS}/s")).status == 200

    assert in_use(run(work)) == 0


def test_random_turns_and_aborts_lose_no_page() -> None:
    async def talk(server: Served, name: str, draw: random.Random) -> None:
        said = ["Hi"]
        for _ in range(6):
            body = encode(chat(*said, stream=draw.random() < 0.5, max_tokens=draw.randint(1, 12), seed=1))
            exchange = server.open(CHAT, body, name if draw.random() < 0.8 else None)
            for _ in range(draw.randint(0, 40)):
                await asyncio.sleep(0.0005)
            if draw.random() < 0.4:
                exchange.leave()
            answer = await exchange.end()
            assert answer.status in (0, 200)
            said = [*said, "ok", "more"] if draw.random() < 0.7 else ["Anew"]

    async def work(server: Served) -> None:
        names = [f"s{at}" for at in range(6)]
        await asyncio.gather(*(talk(server, name, random.Random(name)) for name in names))
        for name in names:
            await ask(server.app, "DELETE", f"{SESSIONS}/{name}")

    llm = run(work, pages=200)
    assert in_use(llm) == 0

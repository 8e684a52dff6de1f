"""Pages on a disk: a conversation's second turn after a restart, and what writing pages adds to a step."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

from kvfold.pipeline.bench.serving.client.asks import Body, Wanted, chat_turn
from kvfold.pipeline.bench.serving.client.outcome import Outcome
from kvfold.pipeline.bench.serving.scenarios.scenario import Bench, Steps
from kvfold.pipeline.bench.serving.scenarios.served_prompts import words
from kvfold.pipeline.bench.serving.scenarios.written_steps import BLOCKS, measure_steps
from kvfold.pipeline.bench.serving.serve_results import Demand, Figure, Measured
from kvfold.pipeline.bench.serving.servers.started_server import Endpoint, run_server
from kvfold.plugins.contract.errors import TargetError
from kvfold.plugins.contract.progress import Progress

# Second turns: of so many conversations in memory, and as many after the restart.
TALKS, FIRST_WORDS, SECOND_WORDS, REPLY_TOKENS = 8, 1920, 64, 16
SLOWER = 1.3
# A reply that goes on after its end, as `ignore_eos` makes it, has a text whose tokens are others.
WANTED = Wanted(REPLY_TOKENS, more={"min_tokens": REPLY_TOKENS})
PLENTY = 1 << 30  # bytes of the cache: no conversation is evicted


@dataclass
class Talk:
    """A conversation of a session, which the server knows word by word.

    Attributes:
        name: of its session.
        said: all messages so far.
    """

    name: str
    said: list[Body] = field(default_factory=list)

    async def turn(self, server: Endpoint, message: str) -> Outcome:
        """Say something; raises TargetError where no whole reply comes."""
        said: list[Body] = [*self.said, {"role": "user", "content": message}]
        ask = replace(chat_turn(said, WANTED), headers={"x-session-id": self.name})
        outcome = await server.client.send(ask, perf_counter())
        if outcome.ending != "complete" or outcome.first_token is None:
            raise TargetError(f"{server.title} did not answer: {outcome.ending}, {outcome.trouble}")
        self.said = [*said, {"role": "assistant", "content": outcome.text}]
        return outcome


@dataclass(frozen=True)
class Second:
    """Second turns of several conversations, one after the other.

    Attributes:
        seconds: until the first token, the middle one's.
        prompt_tokens: of the longest.
        computed: of a prompt's tokens, the most.
    """

    seconds: float
    prompt_tokens: int
    computed: int


async def measure(bench: Bench, progress: Progress) -> Measured:
    """A round is a server and its successor on one folder, and the same steps with and without a tier."""
    steps = Steps(progress, (2 + len(BLOCKS)) * bench.rounds)
    seconds: dict[str, list[Second]] = {"from memory": [], "after a restart": []}
    for number in range(bench.rounds):
        with TemporaryDirectory() as folder:
            found = await _second_turns(bench, Path(folder), number, steps)
            for key, second in zip(seconds, found, strict=True):
                seconds[key].append(second)
    return Measured((*_restart_figures(seconds), *measure_steps(bench, steps)))


async def _second_turns(bench: Bench, folder: Path, number: int, steps: Steps) -> tuple[Second, Second]:
    """Of as many conversations before and after the restart; the first turns of all before."""
    draw = random.Random(f"tier {number}")
    talks = [Talk(f"talk-{each}") for each in range(2 * TALKS)]
    command = bench.server(1, PLENTY, folder)
    steps.next("conversations, from memory")
    async with run_server(command, bench.logs) as server:
        for talk in talks:
            await talk.turn(server, words(FIRST_WORDS, draw))
        await _warm_up(server, draw)
        before = await _second(server, talks[:TALKS], draw)
        server.terminate()
        if await server.exit_code() != 0:
            raise TargetError(f"{server.title} did not end well; look into {server.log}")
    steps.next("conversations, after a restart")
    async with run_server(bench.server(1, PLENTY, folder), bench.logs) as server:
        await _warm_up(server, draw)
        return before, await _second(server, talks[TALKS:], draw)


async def _warm_up(server: Endpoint, draw: random.Random) -> None:
    """A short conversation, so that the first steps of a server do not count."""
    talk = Talk(f"warm-{draw.random()}")
    for _ in range(3):
        await talk.turn(server, words(SECOND_WORDS, draw))


async def _second(server: Endpoint, talks: Sequence[Talk], draw: random.Random) -> Second:
    outcomes = [await talk.turn(server, words(SECOND_WORDS, draw)) for talk in talks]
    return Second(
        median(outcome.first_token or 0.0 for outcome in outcomes),
        max(outcome.prompt_tokens for outcome in outcomes),
        max(outcome.prompt_tokens - outcome.cached_tokens for outcome in outcomes),
    )


def _restart_figures(found: dict[str, list[Second]]) -> list[Figure]:
    before, after = found.values()
    title = f"second turn of {before[0].prompt_tokens:,} tokens"
    slower = tuple(b.seconds / a.seconds for a, b in zip(before, after, strict=True))
    return [
        *(
            figure
            for key, each in found.items()
            for figure in (
                Figure(f"{title}, {key}, first token", "ms", tuple(1e3 * one.seconds for one in each)),
                Figure(f"{title}, {key}, computed", "tokens", tuple(float(one.computed) for one in each)),
            )
        ),
        Figure(f"{title}, after a restart over from memory", "x", slower, Demand("at most", SLOWER)),
    ]

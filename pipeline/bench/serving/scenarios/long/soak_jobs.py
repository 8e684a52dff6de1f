"""What a soak sends, and what each reply must be: chats, clients that leave, bad requests, schemas."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvfold.pipeline.bench.serving.client.asks import (
    CHAT_COMPLETIONS,
    COMPLETIONS,
    Ask,
    Body,
    Chat,
    Job,
    Sender,
    Single,
    Wanted,
    chat_turn,
)
from kvfold.pipeline.bench.serving.client.outcome import Outcome
from kvfold.pipeline.bench.serving.scenarios.served_prompts import words

KEPT = 50  # replies that are compared with cold ones
SHOWN = 20  # of what went wrong
TURNS, MESSAGE_WORDS, REPLY_TOKENS = 6, 40, 48  # at most
LEAVES_WITHIN = 1.5  # seconds
SYSTEMS = ("", "You answer in one short sentence.", "You are a guide in an old town. " * 8)  # shared prefixes
_HI: list[Body] = [{"role": "user", "content": "hi"}]
_IMAGE = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
_NO_SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "banana"}}}
SCHEMA: Body = {
    "type": "object",
    "properties": {
        "place": {"enum": ["river", "market", "harbour"]},
        "visitors": {"type": "integer", "minimum": 0, "maximum": 999},
        "open": {"type": "boolean"},
    },
    "required": ["place", "visitors", "open"],
    "additionalProperties": False,
}
AS_SCHEMA: Body = {
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "place", "schema": SCHEMA, "strict": True},
    }
}
# Each must be refused, with a status that says it is the client's fault.
BAD: tuple[Ask, ...] = (
    Ask(CHAT_COMPLETIONS, b"{not json"),
    Ask(CHAT_COMPLETIONS, b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}'),
    Ask(CHAT_COMPLETIONS, b"[" * 100_000),
    Ask(CHAT_COMPLETIONS, {"messages": []}),
    Ask(CHAT_COMPLETIONS, {"messages": [{"role": "robot", "content": "hi"}]}),
    Ask(CHAT_COMPLETIONS, {"messages": [{"role": "user", "content": _IMAGE}]}),
    Ask(CHAT_COMPLETIONS, {"messages": _HI, "temperature": -1}),
    Ask(CHAT_COMPLETIONS, {"messages": _HI, "max_tokens": -5}),
    Ask(CHAT_COMPLETIONS, {"messages": _HI, "response_format": _NO_SCHEMA}),
    Ask(CHAT_COMPLETIONS, {"messages": _HI, "model": "no such model"}),
    Ask(COMPLETIONS, {"prompt": [10**9]}),
    Ask(COMPLETIONS, {"prompt": [5000] * 20_000}),
    Ask("/v1/nothing", {"messages": _HI}),
)


@dataclass
class SoakLog:
    """What a soak saw.

    Attributes:
        done: jobs by kind.
        wrong: what should not have been; the first ones in words.
        kept: bodies of chat turns and the replies to them, some of all with the same chance for each.
    """

    draw: random.Random
    done: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    kept: list[tuple[Body, str]] = field(default_factory=list)
    seen: int = 0

    def blame(self, kind: str, outcome: Outcome) -> None:
        """Something went wrong."""
        self.wrong.append(f"{kind}: {outcome.ending}, status {outcome.status}, {outcome.trouble}")

    def keep(self, body: Body, text: str) -> None:
        """Perhaps keep a reply."""
        self.seen += 1
        if len(self.kept) < KEPT:
            self.kept.append((body, text))
        elif (at := self.draw.randrange(self.seen)) < KEPT:
            self.kept[at] = (body, text)


@dataclass(frozen=True)
class Judged:
    """A job whose outcomes are looked at.

    Attributes:
        kind: in counts and complaints.
        job: what is done.
        judge: told of its outcomes.
    """

    kind: str
    job: Job
    judge: Callable[[Sequence[Outcome]], None]
    log: SoakLog

    async def run(self, client: Sender, due: float) -> list[Outcome]:
        """Do it, then judge."""
        outcomes = await self.job.run(client, due)
        self.log.done[self.kind] += 1
        self.judge(outcomes)
        return outcomes


def soak_jobs(log: SoakLog) -> Iterator[Job]:
    """Jobs without end."""
    draw = log.draw
    kinds: dict[Callable[[SoakLog], Job], int] = {_chat: 55, _leaver: 20, _bad: 15, _schema: 10}
    while True:
        (make,) = draw.choices(list(kinds), list(kinds.values()))
        yield make(log)


def _chat(log: SoakLog) -> Job:
    """Turns whose replies may be compared with cold ones, greedy or drawn with a seed."""
    draw = log.draw
    drawn: Body = {"temperature": 0.8, "seed": draw.randrange(2**31)} if draw.random() < 0.5 else {}
    wanted = Wanted(draw.randint(1, REPLY_TOKENS), stream=draw.random() < 0.7, more=drawn)
    messages = tuple(words(draw.randint(1, MESSAGE_WORDS), draw) for _ in range(draw.randint(1, TURNS)))
    chat = Chat(messages, wanted, draw.choice(SYSTEMS))

    def judge(outcomes: Sequence[Outcome]) -> None:
        for number, outcome in enumerate(outcomes):
            if outcome.ending == "complete":
                said = chat.said([each.text for each in outcomes[:number]])
                log.keep({"messages": said, **wanted.body()}, outcome.text)
            elif outcome.status != 429:
                log.blame("chat", outcome)

    return Judged("chat", chat, judge, log)


def _leaver(log: SoakLog) -> Job:
    """A client that leaves in the queue, in its prompt or in its reply."""
    draw = log.draw
    said: list[Body] = [{"role": "user", "content": words(draw.randint(1, 300), draw)}]
    wanted = Wanted(200, stream=draw.random() < 0.5, more={"ignore_eos": True})
    ask = chat_turn(said, wanted, draw.uniform(0, LEAVES_WITHIN))

    def judge(outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            if outcome.ending == "broken" or outcome.status not in (0, 200, 429):
                log.blame("leaver", outcome)

    return Judged("leaver", Single(ask), judge, log)


def _bad(log: SoakLog) -> Job:
    """A request that must be refused."""

    def judge(outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            if outcome.ending != "refused" or not 400 <= outcome.status < 500:
                log.blame("bad request", outcome)

    return Judged("bad request", Single(log.draw.choice(BAD)), judge, log)


def _schema(log: SoakLog) -> Job:
    """A reply that must be a document."""
    draw = log.draw
    said: list[Body] = [{"role": "user", "content": words(draw.randint(1, MESSAGE_WORDS), draw)}]
    wanted = Wanted(200, stream=draw.random() < 0.5, more=AS_SCHEMA)

    def judge(outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            if outcome.ending != "complete":
                if outcome.status != 429:
                    log.blame("schema", outcome)
            elif outcome.finish_reason != "length" and not is_place(outcome.text):
                log.wrong.append(f"schema: {outcome.text[:200]!r} is no such document")

    return Judged("schema", Single(chat_turn(said, wanted)), judge, log)


def is_place(text: str) -> bool:
    """Whether a text is a document of `SCHEMA`."""
    try:
        found: Any = json.loads(text)
    except ValueError:
        return False
    return (
        isinstance(found, dict)
        and found.keys() == {"place", "visitors", "open"}
        and found["place"] in SCHEMA["properties"]["place"]["enum"]
        and type(found["visitors"]) is int
        and 0 <= found["visitors"] <= 999
        and isinstance(found["open"], bool)
    )

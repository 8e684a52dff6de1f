"""What is sent: the bodies of requests, and jobs of one request or of a chat's turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Protocol

from kvfold.pipeline.bench.serving.client.outcome import Outcome

COMPLETIONS, CHAT_COMPLETIONS = "/v1/completions", "/v1/chat/completions"
Body = Mapping[str, Any]


@dataclass(frozen=True)
class Ask:
    """One request.

    Attributes:
        path: from the server's root.
        body: as JSON, to which the client adds the model's name; bytes are sent as they are.
        hang_up: seconds after which the client closes the connection; None: never.
        pieces: of a stream's text after which it does; None: never.
        headers: beside the type of the body.
    """

    path: str
    body: Body | bytes
    hang_up: float | None = None
    pieces: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def streams(self) -> bool:
        """Whether the reply comes as events."""
        return not isinstance(self.body, bytes) and bool(self.body.get("stream"))


class Sender(Protocol):
    """What a job needs of a client."""

    async def send(self, ask: Ask, due: float) -> Outcome:
        """Send one request and read its reply to the end."""
        ...


class Job(Protocol):
    """What one client does before it turns to the next job."""

    async def run(self, client: Sender, due: float) -> list[Outcome]:
        """Do it; the first request was due at `due`."""
        ...


@dataclass(frozen=True)
class Wanted:
    """How replies are asked for.

    Attributes:
        max_tokens: of each reply, and exactly so many where `more` has `ignore_eos`.
        stream: as events, with the usage at the end.
        more: fields beside these, such as `seed`.
    """

    max_tokens: int
    stream: bool = True
    more: Body = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """The fields that all kinds of requests share; greedy unless `more` says otherwise."""
        events: Body = {"stream": True, "stream_options": {"include_usage": True}} if self.stream else {}
        return {"max_tokens": self.max_tokens, "temperature": 0.0, **events, **self.more}


EXACTLY: Body = {"ignore_eos": True}  # no field of OpenAI's; kvfold, vLLM, SGLang and llama-server know it


def completion(prompt: str | Sequence[int], wanted: Wanted, hang_up: float | None = None) -> Ask:
    """Go on after a text or token ids."""
    text = prompt if isinstance(prompt, str) else list(prompt)
    return Ask(COMPLETIONS, {"prompt": text, **wanted.body()}, hang_up)


def chat_turn(messages: Sequence[Body], wanted: Wanted, hang_up: float | None = None) -> Ask:
    """Reply to a conversation."""
    return Ask(CHAT_COMPLETIONS, {"messages": list(messages), **wanted.body()}, hang_up)


@dataclass(frozen=True)
class Single:
    """A job of one request."""

    ask: Ask

    async def run(self, client: Sender, due: float) -> list[Outcome]:
        """Send it."""
        return [await client.send(self.ask, due)]


@dataclass(frozen=True)
class Chat:
    """A conversation: each turn sends all messages again, and the replies so far.

    Attributes:
        messages: the user's, one a turn.
        wanted: how each reply is asked for.
        system: what the conversation begins with; empty for nothing.
    """

    messages: tuple[str, ...]
    wanted: Wanted
    system: str = ""

    def said(self, replies: Sequence[str]) -> list[Body]:
        """The messages of the turn after so many replies."""
        said: list[Body] = [{"role": "system", "content": self.system}] if self.system else []
        for message, reply in zip(self.messages, replies, strict=False):
            said += [{"role": "user", "content": message}, {"role": "assistant", "content": reply}]
        return [*said, {"role": "user", "content": self.messages[len(replies)]}]

    async def run(self, client: Sender, due: float) -> list[Outcome]:
        """All turns; a turn without a whole reply is the last one."""
        outcomes: list[Outcome] = []
        for _ in self.messages:
            said = self.said([outcome.text for outcome in outcomes])
            outcomes.append(await client.send(chat_turn(said, self.wanted), due))
            if outcomes[-1].ending != "complete":
                break
            due = perf_counter()
        return outcomes

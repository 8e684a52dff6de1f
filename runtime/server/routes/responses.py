"""/v1/responses: OpenAI's stored responses, each of which the next one may go on from."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from kvfold.runtime.server.http import EventStream, HttpError, Request, Response
from kvfold.runtime.server.routes.begin import Run, begin_chat
from kvfold.runtime.server.routes.conversations import Conversation, ConversationLimits, Turn
from kvfold.runtime.server.routes.kept_conversations import Conversations
from kvfold.runtime.server.routes.shared import Shared, read_ask
from kvfold.runtime.server.state import ServerState
from kvfold.runtime.server.wire.chat_reply import ENCODER
from kvfold.runtime.server.wire.fields.read_body import ignored_header
from kvfold.runtime.server.wire.fields.template_messages import TemplateMessage
from kvfold.runtime.server.wire.openai_usage import new_head
from kvfold.runtime.server.wire.reply_parts import PlainReader, check_not_cancelled
from kvfold.runtime.server.wire.response_events import ResponseEvents
from kvfold.runtime.server.wire.response_items import item_messages
from kvfold.runtime.server.wire.response_request import ResponseAsk, response_ask
from kvfold.runtime.sessions.session_reading import Reading


class StoredResponse(Conversation):
    """A response that is kept: what was asked, and what it came to.

    Attributes:
        response: as it is now.
        asked: messages up to its own reply, without instructions.
        stop: ends its reply within a step.
    """

    def __init__(self, response: dict[str, Any], asked: list[TemplateMessage]) -> None:
        """One that begins; `response` grows with its reply."""
        super().__init__(response["id"])
        self.response = response
        self.asked = asked
        self.stop: Callable[[], None] = lambda: None

    @classmethod
    def load(cls, name: str, reading: Reading) -> StoredResponse | None:
        """One that lay on disk; None where its file was cut."""
        facts = reading.session.facts
        return cls(facts["response"], facts["asked"]) if "response" in facts else None

    @property
    def facts(self) -> dict[str, Any]:
        """What its file says besides its tokens."""
        return {**super().facts, "response": self.response, "asked": self.asked}

    @property
    def status(self) -> str:
        """OpenAI's word for where it is."""
        return str(self.response["status"])

    @property
    def busy(self) -> bool:
        """Whether its reply is being written."""
        return self.status == "in_progress"

    @property
    def messages(self) -> list[TemplateMessage]:
        """All messages, its own reply included."""
        return [*self.asked, *item_messages(self.response["output"])]

    def leave(self) -> None:
        """Its request has ended: a reply that nobody reads is not written."""
        if self.busy:
            self.response["status"] = "cancelled"
        for item in self.response["output"]:
            for part in item.get("content", ()):
                if "logprobs" in part:  # told once; kept, they would outweigh all else
                    part["logprobs"] = []


class Responses:
    """The handlers, and what they share with others."""

    def __init__(self, shared: Shared, limits: ConversationLimits) -> None:
        """Over what handlers share."""
        self._shared = shared
        self._shelf = shared.shelf(limits.folder, "response")
        self._stored: Conversations[StoredResponse] = Conversations(
            limits.max_responses, limits.seconds, shared.discard, self._shelf, StoredResponse.load
        )

    async def create(self, request: Request, state: ServerState) -> Response | EventStream:
        """Reply to an input, and to what came before it."""
        asked = await read_ask(request, response_ask)
        ask = asked.ask
        previous = None if asked.previous is None else await self._find(request, asked.previous)
        before = [] if previous is None else previous.messages
        messages = [*before, *asked.messages]
        events = self._events(request, asked, state)
        stored = StoredResponse(events.response, messages)
        system = [] if asked.instructions is None else [{"role": "system", "content": asked.instructions}]
        turn = await self._turn(request, asked, previous, stored)
        run = await begin_chat(request, self._shared, ask, [*system, *messages], turn, "input")
        headers = ignored_header(run.ignored)
        if asked.store:
            stored.stop = run.replies[0].stop
            request.at_end(stored.leave)
            await self._stored.add(request.tenant, stored, again=request.relayed is not None)
            run = run.settled(lambda: self._save(request.tenant, stored))
        if ask.stream:
            return EventStream(run.stream(events), events.fail, headers)
        return Response(await _written(run, events), headers=headers)

    async def get(self, request: Request, state: ServerState) -> Response:
        """One that is kept; raises HttpError 404 where there is none."""
        return Response(ENCODER.encode((await self._find(request)).response))

    async def delete(self, request: Request, state: ServerState) -> Response:
        """Forget one, and end its reply; raises HttpError 404 where there is none."""
        found = await self._find(request)
        found.stop()
        await self._stored.drop(request.tenant, found)
        return Response.json({"id": found.id, "object": "response", "deleted": True})

    async def cancel(self, request: Request, state: ServerState) -> Response:
        """End its reply within a step; raises HttpError 404 where there is none, 400 where it has ended."""
        found = await self._find(request)
        if found.busy:
            found.stop()
            return Response.json(found.response | {"status": "cancelled"})
        if found.status != "cancelled":
            raise HttpError(400, f"the response is {found.status}; only one that runs can be cancelled")
        return Response(ENCODER.encode(found.response))

    async def _find(self, request: Request, name: str | None = None) -> StoredResponse:
        wanted = request.path_params["id"] if name is None else name
        found = await self._stored.find(request.tenant, wanted)
        if found is None:
            param = "response_id" if name is None else "previous_response_id"
            message = f"there is no response {wanted!r:.80}: it was not stored, or not for so long"
            code = None if name is None else "previous_response_not_found"
            raise HttpError(404 if name is None else 400, message, param=param, code=code)
        if name is not None and found.busy:
            raise HttpError(409, f"response {wanted} is still being written; wait for its end")
        found.used = time.monotonic()
        self._shelf.touch(request.tenant, wanted)
        return found

    async def _save(self, tenant: str, stored: StoredResponse) -> None:
        """Bring one that has ended to the disk, unless it was deleted meanwhile."""
        stored.leave()
        if not stored.dropped:
            stored.reading = await self._shelf.put(tenant, stored.id, stored.as_saved())
            if stored.dropped:  # while this waited for the disk, which came to the deletion first
                await self._shelf.evict(tenant, stored.id)

    def _events(self, request: Request, asked: ResponseAsk, state: ServerState) -> ResponseEvents:
        head = new_head("resp_", state.model_name, request.relayed)
        tokenizer = state.llm.tokenizer

        def count(text: str) -> int:
            return len(tokenizer.encode_rendered(text))

        return ResponseEvents(head, asked.told, self._shared.texts(), count)

    async def _turn(
        self, request: Request, asked: ResponseAsk, previous: StoredResponse | None, stored: StoredResponse
    ) -> Turn | None:
        """A turn after the previous response; else of the session, if one is named; else the first of all."""
        target = stored if asked.store else None
        if previous is not None:
            return Turn(previous, target)
        session = await self._shared.begin_turn(request, asked.ask.session)
        return session or (None if target is None else Turn(target, target))


async def _written(run: Run, events: ResponseEvents) -> bytes:
    """The whole response; raises HttpError 503 where the server stops, as another one can write it."""
    (completion,), reader = await run.completions(), run.readers[0] or PlainReader()
    if completion.cancel_reason == "drain":
        check_not_cancelled(completion)
    events.parts(0, [*reader.push(completion.text), *reader.finish()], completion.logprobs)
    events.end(0, completion)
    body = ENCODER.encode(events.response)
    await run.settle()
    return body

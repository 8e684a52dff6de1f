"""/v1/responses: OpenAI's stored responses, each of which the next one may go on from."""

from __future__ import annotations

import time
from collections.abc import Callable

from kvfold.runtime.server.http import EventStream, HttpError, Request, Response
from kvfold.runtime.server.routes.begin import Run, begin_chat
from kvfold.runtime.server.routes.conversations import Conversation, ConversationLimits, Conversations, Turn
from kvfold.runtime.server.routes.shared import Shared, read_ask
from kvfold.runtime.server.state import ServerState
from kvfold.runtime.server.wire.chat_reply import ENCODER
from kvfold.runtime.server.wire.fields.read_body import ignored_header
from kvfold.runtime.server.wire.fields.template_messages import TemplateMessage
from kvfold.runtime.server.wire.openai_usage import new_head
from kvfold.runtime.server.wire.reply_parts import PlainReader
from kvfold.runtime.server.wire.response_events import ResponseEvents
from kvfold.runtime.server.wire.response_items import item_messages
from kvfold.runtime.server.wire.response_request import ResponseAsk, response_ask


class StoredResponse(Conversation):
    """A response that is kept: what was asked, and what it came to.

    Attributes:
        events: the response as it is now.
        asked: messages up to its own reply, without instructions.
        stop: ends its reply within a step.
    """

    def __init__(self, events: ResponseEvents, asked: list[TemplateMessage]) -> None:
        """One that begins."""
        super().__init__(events.response["id"])
        self.events = events
        self.asked = asked
        self.stop: Callable[[], None] = lambda: None

    @property
    def status(self) -> str:
        """OpenAI's word for where it is."""
        return str(self.events.response["status"])

    @property
    def busy(self) -> bool:
        """Whether its reply is being written."""
        return self.status == "in_progress"

    @property
    def messages(self) -> list[TemplateMessage]:
        """All messages, its own reply included."""
        return [*self.asked, *item_messages(self.events.response["output"])]

    def leave(self) -> None:
        """Its request has ended: a reply that nobody reads is not written."""
        if self.busy:
            self.events.response["status"] = "cancelled"
        for item in self.events.response["output"]:
            for part in item.get("content", ()):
                if "logprobs" in part:  # told once; kept, they would outweigh all else
                    part["logprobs"] = []


class Responses:
    """The handlers, and what they share with others."""

    def __init__(self, shared: Shared, limits: ConversationLimits) -> None:
        """Over what handlers share."""
        self._shared = shared
        self._stored: Conversations[StoredResponse] = Conversations(
            limits.max_responses, limits.seconds, shared.discard
        )

    async def create(self, request: Request, state: ServerState) -> Response | EventStream:
        """Reply to an input, and to what came before it."""
        asked = await read_ask(request, response_ask)
        ask = asked.ask
        previous = None if asked.previous is None else self._find(request, asked.previous)
        before = [] if previous is None else previous.messages
        messages = [*before, *asked.messages]
        events = self._events(request, asked, state)
        stored = StoredResponse(events, messages)
        system = [] if asked.instructions is None else [{"role": "system", "content": asked.instructions}]
        turn = self._turn(request, asked, previous, stored)
        run = await begin_chat(request, self._shared, ask, [*system, *messages], turn, "input")
        if asked.store:
            stored.stop = run.replies[0].stop
            self._stored.add(request.tenant, stored)
            request.at_end(stored.leave)
        headers = ignored_header(run.ignored)
        if ask.stream:
            return EventStream(run.stream(events), events.fail, headers)
        return Response(await _written(run, events), headers=headers)

    async def get(self, request: Request, state: ServerState) -> Response:
        """One that is kept; raises HttpError 404 where there is none."""
        return Response(ENCODER.encode(self._find(request).events.response))

    async def delete(self, request: Request, state: ServerState) -> Response:
        """Forget one, and end its reply; raises HttpError 404 where there is none."""
        found = self._find(request)
        found.stop()
        self._stored.drop(request.tenant, found)
        return Response.json({"id": found.id, "object": "response", "deleted": True})

    async def cancel(self, request: Request, state: ServerState) -> Response:
        """End its reply within a step; raises HttpError 404 where there is none, 400 where it has ended."""
        found = self._find(request)
        if found.busy:
            found.stop()
            return Response.json(found.events.response | {"status": "cancelled"})
        if found.status != "cancelled":
            raise HttpError(400, f"the response is {found.status}; only one that runs can be cancelled")
        return Response(ENCODER.encode(found.events.response))

    def _find(self, request: Request, name: str | None = None) -> StoredResponse:
        wanted = request.path_params["id"] if name is None else name
        found = self._stored.find(request.tenant, wanted)
        if found is None:
            param = "response_id" if name is None else "previous_response_id"
            message = f"there is no response {wanted!r:.80}: it was not stored, or not for so long"
            code = None if name is None else "previous_response_not_found"
            raise HttpError(404 if name is None else 400, message, param=param, code=code)
        if name is not None and found.busy:
            raise HttpError(409, f"response {wanted} is still being written; wait for its end")
        found.used = time.monotonic()
        return found

    def _events(self, request: Request, asked: ResponseAsk, state: ServerState) -> ResponseEvents:
        head = new_head("resp_", state.model_name, request.relayed)
        tokenizer = state.llm.tokenizer

        def count(text: str) -> int:
            return len(tokenizer.encode_rendered(text))

        return ResponseEvents(head, asked.told, self._shared.texts(), count)

    def _turn(
        self, request: Request, asked: ResponseAsk, previous: StoredResponse | None, stored: StoredResponse
    ) -> Turn | None:
        """A turn after the previous response; else of the session, if one is named; else the first of all."""
        target = stored if asked.store else None
        if previous is not None:
            return Turn(previous, target)
        session = self._shared.begin_turn(request, asked.ask.session)
        return session or (None if target is None else Turn(target, target))


async def _written(run: Run, events: ResponseEvents) -> bytes:
    """The whole response."""
    (completion,), reader = await run.completions(), run.readers[0] or PlainReader()
    events.parts(0, [*reader.push(completion.text), *reader.finish()], completion.logprobs)
    events.end(0, completion)
    return ENCODER.encode(events.response)

"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's API."""

from __future__ import annotations

from kvfold.runtime.server.http import EventStream, Request, Response
from kvfold.runtime.server.routes.begin import begin_chat, count_prompt
from kvfold.runtime.server.routes.shared import Shared, read_ask
from kvfold.runtime.server.state import ServerState
from kvfold.runtime.server.wire.fields.read_body import ignored_header
from kvfold.runtime.server.wire.message_reply import MessageEvents, message_body, message_error_event
from kvfold.runtime.server.wire.message_request import count_ask, message_ask
from kvfold.runtime.server.wire.openai_usage import new_head


class Messages:
    """The handlers, and what they share with others."""

    def __init__(self, shared: Shared) -> None:
        """Over what handlers share."""
        self._shared = shared

    async def create(self, request: Request, state: ServerState) -> Response | EventStream:
        """Reply to a conversation."""
        ask, messages = await read_ask(request, message_ask)
        turn = await self._shared.begin_turn(request, ask.session)
        run = await begin_chat(request, self._shared, ask, messages, turn)
        head = new_head("msg_", state.model_name, request.relayed)
        headers, limit = ignored_header(run.ignored), state.llm.max_length
        if ask.stream:
            events = MessageEvents(head, run.prompt_tokens, limit)
            return EventStream(run.stream(events), message_error_event, headers)
        (reply,) = await run.whole()
        return Response(message_body(head, reply, limit), headers=headers)

    async def count_tokens(self, request: Request, state: ServerState) -> Response:
        """Tokens that a conversation is to the model."""
        ask, messages = await read_ask(request, count_ask)
        count = await count_prompt(self._shared, ask, messages)
        return Response.json({"input_tokens": count}, headers=ignored_header(ask.ignored))

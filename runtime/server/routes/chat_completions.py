"""POST /v1/chat/completions."""

from __future__ import annotations

from kvfold.runtime.server.http import EventStream, Request, Response
from kvfold.runtime.server.routes.begin import begin_chat
from kvfold.runtime.server.routes.shared import Shared, read_ask
from kvfold.runtime.server.state import ServerState
from kvfold.runtime.server.wire.chat_reply import ChatEvents, chat_body
from kvfold.runtime.server.wire.chat_request import chat_ask
from kvfold.runtime.server.wire.fields.read_body import ignored_header
from kvfold.runtime.server.wire.openai_usage import new_head


class ChatCompletions:
    """The handler, and what it shares with others."""

    def __init__(self, shared: Shared) -> None:
        """Over what handlers share."""
        self._shared = shared

    async def create(self, request: Request, state: ServerState) -> Response | EventStream:
        """Reply to a conversation."""
        ask, messages = await read_ask(request, chat_ask)
        turn = await self._shared.begin_turn(request, ask.session)
        run = await begin_chat(request, self._shared, ask, messages, turn)
        head = new_head("chatcmpl-", state.model_name, request.relayed)
        headers, texts = ignored_header(run.ignored), self._shared.texts()
        if ask.stream:
            events = ChatEvents(head, ask.n, ask.include_usage, texts)
            return EventStream(run.stream(events), headers=headers)
        return Response(chat_body(head, await run.whole(), texts), headers=headers)

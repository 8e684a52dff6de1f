"""POST /v1/completions."""

from __future__ import annotations

import asyncio

from kvfold.runtime.server.http import EventStream, Request, Response
from kvfold.runtime.server.routes.begin import begin_texts
from kvfold.runtime.server.routes.shared import Shared, read_ask
from kvfold.runtime.server.state import ServerState
from kvfold.runtime.server.wire.completion_reply import CompletionEvents, Echo, completion_body
from kvfold.runtime.server.wire.completion_request import CompletionAsk, completion_ask
from kvfold.runtime.server.wire.fields.read_body import ignored_header
from kvfold.runtime.server.wire.openai_usage import new_head


class Completions:
    """The handler, and what it shares with others."""

    def __init__(self, shared: Shared) -> None:
        """Over what handlers share."""
        self._shared = shared

    async def create(self, request: Request, state: ServerState) -> Response | EventStream:
        """Go on from raw prompts."""
        asked = await read_ask(request, completion_ask)
        ask = asked.ask
        run, tokens = await begin_texts(request, self._shared, ask, asked.prompts, asked.begin)
        head = new_head("cmpl-", state.model_name, request.relayed)
        headers, texts = ignored_header(run.ignored), self._shared.texts()
        echoes = _echoes(asked, tokens, state) if asked.echo else []
        if ask.stream:
            begun = [echo.text for echo in echoes] or [""] * len(run.replies)
            events = CompletionEvents(head, ask.n, begun, ask.include_usage, texts)
            return EventStream(run.stream(events), headers=headers)
        completions = await run.completions()
        if ask.params.logprobs is None:
            return Response(completion_body(head, completions, ask.n, echoes, texts), headers=headers)
        # Offsets of a long prompt's tokens take a while.
        body = await asyncio.to_thread(completion_body, head, completions, ask.n, echoes, texts)
        return Response(body, headers=headers)


def _echoes(asked: CompletionAsk, tokens: list[list[int]], state: ServerState) -> list[Echo]:
    """The prompt of each reply."""
    return [
        Echo(prompt if isinstance(prompt, str) else state.llm.tokenizer.decode(ids), ids)
        for prompt, ids in zip(asked.prompts, tokens, strict=True)
        for _ in range(asked.ask.n)
    ]

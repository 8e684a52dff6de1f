"""POST /tokenize and /detokenize, in vLLM's format."""

from __future__ import annotations

import asyncio

from kvfold.runtime.server.http import Request, Response
from kvfold.runtime.server.routes.begin import check_model
from kvfold.runtime.server.routes.shared import Shared, read_ask
from kvfold.runtime.server.state import ServerState
from kvfold.runtime.server.wire.chat_reply import ENCODER
from kvfold.runtime.server.wire.fields.read_body import ignored_header, wrong
from kvfold.runtime.server.wire.token_requests import TokenizeAsk, detokenize_ask, tokenize_ask
from kvfold.runtime.structured.call_formats import choose_call_format
from kvfold.runtime.structured.tool_prompt import prepare_chat
from kvfold.runtime.text.tokenizer import Tokenizer


class Tokenizing:
    """The handlers, and what they share with others."""

    def __init__(self, shared: Shared) -> None:
        """Over what handlers share."""
        self._shared = shared

    async def tokenize(self, request: Request, state: ServerState) -> Response:
        """Tokens of a text or a conversation."""
        ask = await read_ask(request, tokenize_ask)
        check_model(ask.model, state)
        texts, limit = self._shared.texts(), state.llm.max_length

        def body() -> bytes:
            tokens = _encode(state.llm.tokenizer, ask)
            told = list(map(texts.text, tokens)) if ask.texts else None
            found = {"count": len(tokens), "max_model_len": limit, "tokens": tokens, "token_strs": told}
            return ENCODER.encode(found)

        return Response(await asyncio.to_thread(body), headers=ignored_header(ask.ignored))

    async def detokenize(self, request: Request, state: ServerState) -> Response:
        """The text of tokens, control tokens included."""
        model, tokens, ignored = await read_ask(request, detokenize_ask)
        check_model(model, state)
        limit = state.llm.vocab_size
        for token in tokens:
            if token >= limit:
                raise wrong(f"has {token}; this model's token ids are below {limit}", "tokens")
        text = await asyncio.to_thread(state.llm.tokenizer.decode_rendered, tokens)
        return Response.json({"prompt": text}, headers=ignored_header(ignored))


def _encode(tokenizer: Tokenizer, ask: TokenizeAsk) -> list[int]:
    if ask.prompt is not None:
        return tokenizer.encode(ask.prompt) if ask.begin else tokenizer.encode_rendered(ask.prompt)
    template = tokenizer.chat_template
    ready = prepare_chat(template, ask.messages, ask.tools.tools, choose_call_format(template))
    text = tokenizer.render(ready.messages, add_generation_prompt=ask.generate, tools=ready.tools)
    return tokenizer.encode_rendered(text)

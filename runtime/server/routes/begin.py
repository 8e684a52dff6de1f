"""The path that every API shares: what a request asks for becomes token ids, then replies of the model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from kvfold.runtime.llm.generation import Completion
from kvfold.runtime.loop.ticket import Service
from kvfold.runtime.scheduler.request import Prompt
from kvfold.runtime.server.http import HttpError, Request
from kvfold.runtime.server.relayed import Relayed
from kvfold.runtime.server.routes.constrain import Constrained, constrain_chat, constrain_text
from kvfold.runtime.server.routes.conversations import Settle, Turn, nothing_to_settle
from kvfold.runtime.server.routes.follow import Ended, Events, Notes, stream_replies, whole_replies
from kvfold.runtime.server.routes.shared import Shared
from kvfold.runtime.server.state import ServerState
from kvfold.runtime.server.tracked_reply import TrackedReply
from kvfold.runtime.server.wire.fields.ask import Ask
from kvfold.runtime.server.wire.fields.read_body import describe, wrong
from kvfold.runtime.server.wire.fields.template_messages import TemplateMessage
from kvfold.runtime.server.wire.reply_parts import ReplyReader, WholeReply, read_whole
from kvfold.runtime.structured.call_formats import choose_call_format
from kvfold.runtime.structured.tool_prompt import prepare_chat
from kvfold.runtime.text.chat import EncodedChat, encode_chat


@dataclass(frozen=True)
class Run:
    """Replies that were submitted, and who reads them.

    Attributes:
        prompt_tokens: of all prompts together.
        replies: in the order of the choices.
        readers: one for each.
        ignored: fields, and parts of schemas, that have no effect.
        ended: called with a reply's completion, before it is told.
        settle: called when all have ended, before the client hears of it.
        relayed: what a relay said of the request.
        told: the prompt's tokens, where another server might read it differently.
    """

    prompt_tokens: int
    replies: Sequence[TrackedReply]
    readers: Sequence[ReplyReader | None]
    ignored: tuple[str, ...]
    ended: Ended | None = None
    settle: Settle = nothing_to_settle
    relayed: Relayed | None = None
    told: tuple[int, ...] | None = None

    def stream(self, events: Events) -> AsyncGenerator[bytes, None]:
        """Events, as text comes."""
        notes = None if self.relayed is None else Notes(self.relayed, self.told)
        return stream_replies(self.replies, self.readers, events, self.ended, self.settle, notes)

    async def completions(self) -> list[Completion]:
        """All completions, when they have ended; nothing is settled yet."""
        completions = await whole_replies(self.replies)
        for at, completion in enumerate(completions):
            if self.ended is not None:
                self.ended(at, completion)
        return completions

    async def whole(self) -> list[WholeReply]:
        """The same, read and settled."""
        pairs = zip(await self.completions(), self.readers, strict=True)
        await self.settle()
        return [read_whole(completion, reader) for completion, reader in pairs]

    def settled(self, settle: Settle) -> Run:
        """The same, with one thing more to settle."""

        async def both() -> None:
            await self.settle()
            await settle()

        return replace(self, settle=both)


async def begin_chat(
    request: Request,
    shared: Shared,
    ask: Ask,
    messages: Sequence[TemplateMessage],
    turn: Turn | None = None,
    param: str = "messages",
) -> Run:
    """Submit the replies to a conversation, as a turn of a kept one if there is such.

    Args:
        request: asks for it.
        shared: what handlers share.
        ask: how to reply.
        messages: the conversation.
        turn: of a kept conversation; None where nothing is kept.
        param: the field that a prompt is too long by.

    Raises:
        HttpError: 400 it cannot be served as asked; 404 the model is another; 429, 503 as
            ServerState.submit_several.
        RequestError: the chat template refuses the messages; else as AsyncLLM.submit.
    """
    state = shared.state
    check_model(ask.model, state)
    _refuse_endless(len(messages), "messages", state.llm.max_length, state, param)
    _refuse_long_text((message.get("content") for message in messages), state, param)
    if turn is None:
        chat, form = await asyncio.to_thread(_prepare_chat, state, ask, messages, None)
        ids = _fitting(chat.token_ids, state, param)
        prompt = Prompt(ids, chat.shared_length, chat.borders, tenant=request.tenant)
        replies = submit(request, shared, ask, prompt, form)
        ignored = (*ask.ignored, *form.ignored)
        readers = [form.reader(request.relayed, at) for at in range(len(replies))]
        return Run(len(ids), replies, readers, ignored, relayed=request.relayed)
    return await _begin_turn(request, shared, ask, messages, turn, param)


async def _begin_turn(
    request: Request, shared: Shared, ask: Ask, messages: Sequence[TemplateMessage], turn: Turn, param: str
) -> Run:
    state = shared.state
    if ask.n > 1:
        raise wrong(f"is {ask.n}; a session has one reply a turn", "n")
    chat, form = await asyncio.to_thread(_prepare_chat, state, ask, messages, turn.known)
    relayed = request.relayed
    if relayed is not None and relayed.prompt is not None:
        chat = replace(chat, token_ids=relayed.prompt)
    told = tuple(chat.token_ids) if relayed is not None and turn.known.token_ids else None
    ids = _fitting(chat.token_ids, state, param)
    prompt = Prompt(ids, chat.shared_length, chat.borders, turn.kept, tenant=request.tenant)
    replies = submit(request, shared, ask, prompt, form, keep=turn.keeps)
    turn.started(chat)

    def ended(at: int, completion: Completion) -> None:
        turn.finish(state.llm.tokenizer, completion, replies[at].kept)

    def undo() -> None:
        if not turn.finished:
            shared.discard(turn.taken)
            shared.discard(replies[0].kept)

    request.at_end(undo)

    async def settle() -> None:
        if turn.finished:
            await turn.settle()

    ignored = (*ask.ignored, *form.ignored)
    return Run(len(ids), replies, [form.reader(relayed, 0)], ignored, ended, settle, relayed, told)


async def count_prompt(shared: Shared, ask: Ask, messages: Sequence[TemplateMessage]) -> int:
    """Tokens of a conversation; raises as `begin_chat`."""
    check_model(ask.model, shared.state)
    chat, _ = await asyncio.to_thread(_prepare_chat, shared.state, ask, messages, None)
    return len(chat.token_ids)


async def begin_texts(
    request: Request, shared: Shared, ask: Ask, prompts: Sequence[str | list[int]], begin: bool
) -> tuple[Run, list[list[int]]]:
    """Submit n replies to each raw prompt; the run, and the prompts' tokens. Raises as `begin_chat`."""
    state = shared.state
    check_model(ask.model, state)
    for at, prompt in enumerate(prompts):
        _refuse_long_text((prompt,), state, _param(at, len(prompts)))
    tokens, form = await asyncio.to_thread(_prepare_texts, state, ask, prompts, begin)
    replies: list[TrackedReply] = []
    for at, ids in enumerate(tokens):
        fitting = _fitting(
            ids, state, _param(at, len(tokens)), reply=min(1, 1 if ask.max_tokens is None else ask.max_tokens)
        )
        read = Prompt(fitting, tenant=request.tenant)
        replies += submit(request, shared, ask, read, form, first=len(replies))
    ignored = (*ask.ignored, *form.ignored)
    readers = [None] * len(replies)
    return Run(sum(map(len, tokens)), replies, readers, ignored, relayed=request.relayed), tokens


def submit(
    request: Request,
    shared: Shared,
    ask: Ask,
    prompt: Prompt,
    form: Constrained,
    keep: bool = False,
    first: int = 0,
) -> list[TrackedReply]:
    """Ask for all replies to one prompt, the `first` of the request's; raises as submit_several."""
    state, relayed = shared.state, request.relayed
    if relayed is not None and ask.params.seed is None:
        ask = replace(ask, params=replace(ask.params, seed=relayed.seed))
    said = () if relayed is None else relayed.said_by(first, ask.n)
    length = len(prompt.token_ids)
    params = [ask.params_for(length, state.llm.max_length, at) for at in range(ask.n)]
    constraint = None if form.grammar is None else form.grammar.constraint
    service = Service(ask.priority, ask.deadline, keep, constraint, form.kept, said)
    replies = state.submit_several(request, prompt, params, service)
    shared.watch(request, replies)
    return replies


def check_model(name: str | None, state: ServerState) -> None:
    """Refuse a model that is not here; raises HttpError 404."""
    if name is not None and name != state.model_name:
        raise HttpError(
            404,
            f"the model {describe(name)} is not served here; use {describe(state.model_name)}",
            param="model",
            code="model_not_found",
        )


def _refuse_endless(count: int, of: str, most: int, state: ServerState, param: str) -> None:
    """Refuse what cannot fit, before it is tokenized; raises HttpError 400."""
    if count > most:
        raise HttpError(
            400,
            f"the prompt has {count} {of}; {state.llm.max_length} tokens, the context with the reply, "
            f"have {most} at most; shorten the prompt",
            param=param,
            code="context_length_exceeded",
        )


def _refuse_long_text(texts: Iterable[object], state: ServerState, param: str) -> None:
    """The same for the texts of one prompt."""
    characters = sum(len(text) for text in texts if isinstance(text, str))
    most = state.llm.max_length * state.llm.tokenizer.longest_token
    _refuse_endless(characters, "characters", most, state, param)


def _prepare_chat(
    state: ServerState, ask: Ask, messages: Sequence[TemplateMessage], known: EncodedChat | None
) -> tuple[EncodedChat, Constrained]:
    """In a thread of its own: templates, tokenizers and grammars take their time."""
    tokenizer = state.llm.tokenizer
    form = choose_call_format(tokenizer.chat_template)
    ready = prepare_chat(tokenizer.chat_template, messages, ask.tools.tools, form)
    chat = encode_chat(tokenizer, ready.messages, known, ready.tools)
    return chat, constrain_chat(state, ask, form, chat.text)


def _prepare_texts(
    state: ServerState, ask: Ask, prompts: Sequence[str | list[int]], begin: bool
) -> tuple[list[list[int]], Constrained]:
    encode = state.llm.tokenizer.encode if begin else state.llm.tokenizer.encode_rendered
    tokens = [encode(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
    return tokens, constrain_text(state, ask)


def _param(at: int, prompts: int) -> str:
    return "prompt" if prompts == 1 else f"prompt[{at}]"


def _fitting(ids: Sequence[int], state: ServerState, param: str, reply: int = 1) -> np.ndarray:
    """Tokens of a prompt, int64 [L], that leave room for a reply; raises HttpError 400."""
    limit = state.llm.max_length
    if len(ids) + reply > limit:
        raise HttpError(
            400,
            f"the prompt has {len(ids)} tokens, the context {limit} with the reply; shorten the prompt",
            param=param,
            code="context_length_exceeded",
        )
    return np.asarray(ids, np.int64)

"""The body of a completion as an Ask and prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvfold.runtime.server.wire.fields.ask import Ask
from kvfold.runtime.server.wire.fields.read_body import describe, read_body, wrong
from kvfold.runtime.server.wire.fields.sampling_fields import (
    SamplingFields,
    sampling_params,
    service_fields,
    stream_fields,
    token_limit,
)
from kvfold.runtime.server.wire.fields.shape_fields import read_shape

MAX_LOGPROBS = 20
# OpenAI's default.
MAX_TOKENS = 16
# Prompts times replies: a request is let in as a whole, so it must not be a queue of its own.
MAX_TEXTS = 1024


class CompletionBody(SamplingFields, frozen=True, kw_only=True):
    """Fields of POST /v1/completions."""

    prompt: Any
    echo: bool | None = None
    logprobs: int | None = None
    best_of: int | None = None
    suffix: str | None = None
    # vLLM's
    add_special_tokens: bool | None = None


@dataclass(frozen=True)
class CompletionAsk:
    """What a completion asks for.

    Attributes:
        ask: what all APIs share.
        prompts: texts or token ids.
        echo: each text begins with its prompt.
        begin: texts begin with the model's BOS token, where it has one.
    """

    ask: Ask
    prompts: tuple[str | list[int], ...]
    echo: bool
    begin: bool


def completion_ask(fields: Mapping[str, Any], headers: Mapping[str, str]) -> CompletionAsk:
    """What a completion asks for; raises HttpError 400."""
    body, ignored = read_body(fields, CompletionBody)
    if (body.best_of or 1) > 1:
        raise wrong(f"is {body.best_of}; this server does not rank replies: use n", "best_of")
    if body.suffix:
        raise wrong("is not served: the model does not fill in; leave it out", "suffix")
    if body.logprobs is not None and not 0 <= body.logprobs <= MAX_LOGPROBS:
        raise wrong(f"is {body.logprobs}; use 0 to {MAX_LOGPROBS}", "logprobs")
    echo = bool(body.echo)
    scored = body.logprobs if echo else None
    limit = token_limit(MAX_TOKENS if body.max_tokens is None else body.max_tokens, "max_tokens", 0)
    if limit == 0:
        if not echo:
            raise wrong("is 0; use at least 1, or echo: true to score the prompt", "max_tokens")
        scored = scored or 0  # a request without a reply must ask for something
    stream = stream_fields(body)
    if scored is not None and stream["stream"]:
        raise wrong("is not served with logprobs or max_tokens 0 in a stream; send stream: false", "echo")
    prompts = read_prompts(body.prompt)
    if len(prompts) * stream["n"] > MAX_TEXTS:
        raise wrong(
            f"asks for {len(prompts) * stream['n']} texts at once; ask for {MAX_TEXTS} at most", "prompt"
        )
    ask = Ask(
        body.model,
        sampling_params(body, logprobs=body.logprobs, prompt_logprobs=scored),
        max_tokens=limit,
        shape=read_shape(body),
        ignored=ignored,
        **stream,
        **service_fields(headers, body.priority, body.timeout, body.session_id),
    )
    if ask.session is not None:
        raise wrong("is for chats: a completion has no turns; leave it out", "session_id")
    return CompletionAsk(ask, prompts, echo, body.add_special_tokens is not False)


def read_prompts(given: Any) -> tuple[str | list[int], ...]:
    """A text, token ids, or a list of either; raises HttpError 400."""
    if isinstance(given, str):
        return (given,)
    if not isinstance(given, list):
        raise wrong(f"is {describe(given)}; send a text, token ids, or a list of either", "prompt")
    if not given:
        raise wrong("is an empty list; send at least one text or token id", "prompt")
    if _is_token(given[0]):
        return (check_tokens(given, "prompt"),)
    return tuple(
        prompt if isinstance(prompt, str) else check_tokens(prompt, f"prompt[{at}]")
        for at, prompt in enumerate(given)
    )


def check_tokens(given: Any, param: str) -> list[int]:
    """A list of token ids; raises HttpError 400."""
    if not isinstance(given, list) or not all(map(_is_token, given)):
        raise wrong(f"is {describe(given)}; send token ids", param)
    if any(not 0 <= token < 2**31 for token in given):
        raise wrong("has a token id that is in no vocabulary; use this model's tokenizer", param)
    return given


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)

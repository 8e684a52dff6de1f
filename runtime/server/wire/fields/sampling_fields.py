"""Fields of OpenAI's bodies, and vLLM's extra ones, that say how a reply is sampled and served."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from kvfold.plugins.contract.errors import RequestError
from kvfold.runtime.sampling.params import SamplingParams
from kvfold.runtime.server.http import HttpError
from kvfold.runtime.server.wire.fields.read_body import describe, wrong
from kvfold.runtime.server.wire.fields.shape_fields import ShapeFields

# OpenAI's default. Ours elsewhere is greedy.
TEMPERATURE = 1.0
MAX_REPLIES = 128
MAX_STOPS, MAX_STOP_CHARACTERS = 64, 1024
# It stands in paths too.
SESSION_NAME = re.compile(r"[\w.:-]{1,128}", re.ASCII)
NO_NAMES: Mapping[str, str] = {}
TIMEOUT_HEADER, SESSION_HEADER = "x-request-timeout", "x-session-id"


class StreamOptions(msgspec.Struct, frozen=True):
    """What a stream brings beside the reply."""

    include_usage: bool | None = None


class SamplingFields(ShapeFields, frozen=True, kw_only=True):
    """What chat completions and completions share; null is as good as absent."""

    model: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    # vLLM's
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    priority: int | None = None
    # ours
    timeout: float | None = None
    session_id: str | None = None
    # Taken and not used: they are for a provider's own bookkeeping.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None


def sampling_params(fields: SamplingFields, **more: Any) -> SamplingParams:
    """How a reply is sampled; `more` are params that a body spells in its own way.

    Raises:
        HttpError: 400, a value is out of range.
    """
    stop = fields.stop or ()
    values: dict[str, Any] = {
        "temperature": TEMPERATURE if fields.temperature is None else fields.temperature,
        "stop": tuple(text for text in ([stop] if isinstance(stop, str) else stop) if text),
        "top_k": 0 if fields.top_k == -1 else fields.top_k,  # -1 is vLLM's word for all
        "seed": None if fields.seed is None else fields.seed % 2**64,
        "logit_bias": None if fields.logit_bias is None else _bias(fields.logit_bias),
        "stop_token_ids": None if fields.stop_token_ids is None else tuple(fields.stop_token_ids),
    }
    for name in ("top_p", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty"):
        values[name] = getattr(fields, name)
    values |= {"min_tokens": fields.min_tokens, "ignore_eos": fields.ignore_eos, **more}
    return checked_params({name: value for name, value in values.items() if value is not None})


def checked_params(values: Mapping[str, Any], names: Mapping[str, str] = NO_NAMES) -> SamplingParams:
    """SamplingParams; the HttpError of a refused value names its field, which `names` may call otherwise."""
    _check_stop(values.get("stop", ()), (names or {}).get("stop", "stop"))
    try:
        return SamplingParams(**values)
    except RequestError as error:
        message = str(error)
        field = next((name for name in re.findall(r"\w+", message) if name in values), "")
        param = names.get(field, field)
        raise HttpError(400, message.replace(field, param, 1), param=param or None) from None


def _check_stop(texts: Sequence[str], param: str) -> None:
    """Every token of a reply is compared with all of them."""
    if len(texts) > MAX_STOPS:
        raise wrong(f"has {len(texts)} texts; send at most {MAX_STOPS}", param)
    if (characters := sum(map(len, texts))) > MAX_STOP_CHARACTERS:
        raise wrong(f"has {characters} characters; send at most {MAX_STOP_CHARACTERS}", param)


def stream_fields(fields: SamplingFields) -> dict[str, Any]:
    """`stream`, `n` and their kin, as an Ask has them; raises HttpError 400."""
    n = 1 if fields.n is None else fields.n
    if not 1 <= n <= MAX_REPLIES:
        raise wrong(f"is {n}; use 1 to {MAX_REPLIES}", "n")
    stream = bool(fields.stream)
    if fields.stream_options is not None and not stream:
        raise wrong("is only for streams; send stream: true with it", "stream_options")
    usage = stream and fields.stream_options is not None and bool(fields.stream_options.include_usage)
    return {"n": n, "stream": stream, "include_usage": usage}


def service_fields(
    headers: Mapping[str, str],
    priority: int | None = None,
    timeout: float | None = None,
    session_id: str | None = None,
) -> dict[str, Any]:
    """Priority, deadline and session, as an Ask has them; the body's go before the headers'.

    Raises:
        HttpError: 400, a value is out of range.
    """
    priority = priority or 0
    if not -(2**31) <= priority < 2**31:
        raise wrong(f"is {priority}; use a 32-bit integer", "priority")
    param = "timeout"
    if timeout is None and TIMEOUT_HEADER in headers:
        param, timeout = TIMEOUT_HEADER, _seconds(headers[TIMEOUT_HEADER])
    if timeout is not None and not 0 < timeout < math.inf:
        raise wrong(f"is {timeout:g}; use seconds above 0", param)
    session = check_session(headers.get(SESSION_HEADER) if session_id is None else session_id)
    return {"priority": priority, "deadline": timeout, "session": session}


def check_session(name: str | None) -> str | None:
    """A session's name; raises HttpError 400."""
    if name is not None and not SESSION_NAME.fullmatch(name):
        raise wrong(f"is {describe(name)}; use 1 to 128 letters, digits, _ . : or -", "session_id")
    return name


def token_limit(value: int | None, param: str, least: int = 1) -> int | None:
    """Tokens of a reply at most; raises HttpError 400."""
    if value is not None and value < least:
        raise wrong(f"is {value}; use at least {least}", param)
    return value


def _bias(given: Mapping[str, float]) -> dict[int, float]:
    """OpenAI's keys are token ids as texts."""
    for key in given:
        if not (key.isascii() and key.isdecimal() and len(key) < 10):
            raise wrong(f"has the key {describe(key)}; use token ids of this model", "logit_bias")
    return {int(key): value for key, value in given.items()}


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise wrong(f"is {describe(text)}; use seconds above 0", TIMEOUT_HEADER) from None

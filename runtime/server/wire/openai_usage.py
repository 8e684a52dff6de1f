"""What OpenAI's bodies say of a request as a whole: its head, and what it cost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kvfold.runtime.metrics import Usage
from kvfold.runtime.server.relayed import Relayed
from kvfold.runtime.server.wire.reply_parts import new_id


@dataclass(frozen=True)
class Head:
    """What every body and chunk of a response repeats.

    Attributes:
        id: of the response.
        created: seconds since the epoch.
        model: as the server calls it.
    """

    id: str
    created: int
    model: str


def new_head(prefix: str, model: str, relayed: Relayed | None) -> Head:
    """The head of a response that begins now, or that a relay has begun."""
    if relayed is None:
        return Head(new_id(prefix), int(time.time()), model)
    return Head(prefix + relayed.id, relayed.created, model)


def openai_usage(usages: Sequence[Usage], n: int, reasoning_tokens: int = 0) -> dict[str, Any]:
    """Tokens of all replies, `n` to each prompt; a prompt counts once, as its cheapest reply read it."""
    prompts = [usages[at : at + n] for at in range(0, len(usages), n)]
    asked = sum(replies[0].prompt_tokens for replies in prompts)
    written = sum(usage.completion_tokens for usage in usages)
    usage: dict[str, Any] = {
        "prompt_tokens": asked,
        "completion_tokens": written,
        "total_tokens": asked + written,
        "prompt_tokens_details": {
            "cached_tokens": sum(min(usage.reused_tokens for usage in replies) for replies in prompts)
        },
    }
    if reasoning_tokens:
        usage["completion_tokens_details"] = {"reasoning_tokens": reasoning_tokens}
    return usage

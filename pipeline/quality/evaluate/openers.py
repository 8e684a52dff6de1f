"""Openers: what people say to a chat model first, and short chats that it is to go on with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kvfold.plugins.contract.errors import RequestError
from kvfold.runtime.text.chat import encode_chat
from kvfold.runtime.text.tokenizer import Tokenizer

SHIPPED_OPENERS = Path(__file__).parent / "openers.txt"
INDENT = "  "  # of the lines that go on with the chat of the line above
ROLES = ("user", "assistant")


@dataclass(frozen=True)
class Opener:
    """A conversation that waits for a reply.

    Attributes:
        text: what the user said last.
        token_ids: the conversation under the model's chat template, up to the reply.
    """

    text: str
    token_ids: list[int]


def read_openers(count: int, tokenizer: Tokenizer, longest: int) -> list[Opener]:
    """So many of the shipped conversations, spread over all; those above `longest` tokens are left out.

    There are none for a model without a chat template.
    """
    chats = _read_chats()
    openers = []
    for index in range(count):
        turns = chats[index * len(chats) // count]
        messages = [{"role": ROLES[place % 2], "content": text} for place, text in enumerate(turns)]
        try:
            openers.append(Opener(turns[-1], encode_chat(tokenizer, messages).token_ids))
        except RequestError:  # no template, or one that refuses these roles
            return []
    return [opener for opener in openers if len(opener.token_ids) <= longest]


def _read_chats() -> list[list[str]]:
    """Every shipped conversation: the user's turn, or the user's, the reply and the user's."""
    chats: list[list[str]] = []
    for line in SHIPPED_OPENERS.read_text(encoding="utf-8").splitlines():
        if line.startswith(INDENT):
            chats[-1].append(line.strip())
        elif line and not line.startswith("#"):
            chats.append([line])
    return chats

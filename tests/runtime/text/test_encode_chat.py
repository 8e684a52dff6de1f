"""A chat as tokens: where its messages begin."""

from __future__ import annotations

from kvfold.runtime.text.chat import encode_chat
from tests.runtime.byte_tokenizer import SPECIAL, ByteTokenizer


def test_the_last_messages_begin_at_borders() -> None:
    texts = ["be brief", "<|im_start|>", "yes", "and?", "no", "why"]
    roles = ["system", "user", "assistant", "user", "assistant", "user"]
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
    chat = encode_chat(ByteTokenizer(), messages)
    openings = [place for place, token in enumerate(chat.token_ids) if token == SPECIAL["<|im_start|>"]]
    assert len(openings) == 7, "six messages and the reply; what a message spells is text"
    assert chat.borders == tuple(openings[2:6])
    edited = encode_chat(ByteTokenizer(), [*messages[:-1], {"role": "user", "content": "how"}])
    border = chat.borders[-1]
    assert edited.token_ids[:border] == chat.token_ids[:border]

"""A tokenizer of bytes: token i < 256 is byte i, so characters break across tokens; 256 on are special."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from kvfold.plugins.contract.chat_template import Message
from kvfold.plugins.contract.template_text import TemplateText, by_template, join_texts, written_by_template

SPECIAL = {"<|im_start|>": 256, "<|im_end|>": 257}
NAMES = {token: text for text, token in SPECIAL.items()}
VOCAB = 258


class ByteTokenizer:
    """Renders chats the ChatML way; `charset` is what its bytes stand for."""

    charset = "utf-8"
    chat_template: str | None = None

    def __init__(self, eos_token_ids: Sequence[int] = (257,)) -> None:
        self.eos_token_ids = eos_token_ids

    @property
    def fingerprint(self) -> str:
        return f"{self.charset} {self.eos_token_ids}"

    def encode(self, text: str, *, control_tokens: bool = True) -> list[int]:
        return self.encode_rendered(by_template(text) if control_tokens else text)

    def encode_rendered(self, text: str) -> list[int]:
        ids: list[int] = []
        at = 0
        for part in re.split(r"(<\|im_start\|>|<\|im_end\|>)", text):
            marks = written_by_template(text[at : at + len(part)])
            ids += [SPECIAL[part]] if part in SPECIAL and 0 not in marks else list(part.encode(self.charset))
            at += len(part)
        return ids

    @property
    def added_tokens(self) -> Mapping[str, int]:
        return SPECIAL

    @property
    def longest_token(self) -> int:
        return max(map(len, SPECIAL))

    def decode(self, token_ids: Sequence[int], *, keep: Collection[int] = ()) -> str:
        return self.decode_rendered([token for token in token_ids if token < 256 or token in keep])

    def decode_rendered(self, token_ids: Sequence[int]) -> str:
        text, run = "", bytearray()
        for token in token_ids:
            if token < 256:
                run.append(token)
                continue
            text += run.decode(self.charset, errors="replace") + NAMES[token]
            run.clear()
        return text + run.decode(self.charset, errors="replace")

    def render(
        self, messages: Sequence[Message], *, add_generation_prompt: bool, tools: object = ()
    ) -> TemplateText:
        pieces: list[str] = []
        for message in messages:
            opening = by_template(f"<|im_start|>{message['role']}\n")
            pieces += [opening, str(message["content"]), by_template("<|im_end|>\n")]
        return join_texts([*pieces, by_template("<|im_start|>assistant\n" if add_generation_prompt else "")])

"""A chat with a model that says what a script says; run as a module, with the context as its argument.

Its pages, its scheduler and its session are real; only what follows a message is made up. Tokens are bytes.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich import get_console

from kvfold import LLM, RuntimeConfig, SamplingParams
from kvfold.pipeline.chat.chat_commands import Conversation
from kvfold.pipeline.chat.chat_model import ChatModel
from kvfold.pipeline.chat.run_chat import run_chat
from kvfold.plugins.contract.attention_shape import AttentionShape
from tests.runtime.byte_tokenizer import SPECIAL, VOCAB, ByteTokenizer
from tests.runtime.synthetic_engine import SyntheticEngine, make_plan

PLAN = make_plan((None, 0))
MARKDOWN = """# Caches

A **KV cache** keeps what attention needs of tokens that were read before, so that `decode` reads each once.
Second line of the paragraph.

1. first things first, which is a list item that is long enough to wrap at sixty columns
2. second, with <b>tags</b> in it

```python
def page(token):
    return token // 16
```

| plan | KiB |
|---|---:|
| compact | 516 |
"""
SCRIPT = {
    "markdown": MARKDOWN,
    "count": " ".join(map(str, range(1, 2000))),
    "escape": "red \x1b[31malert\x1b[0m\x07 \x9b2J over",
    "lines": "\n\n".join(f"paragraph {number}" for number in range(150)),
}
# A file that the model makes when it begins to read a slow message.
READING = Path("reading")


class ScriptedEngine(SyntheticEngine):
    """Answers the last message; one that counts, or reads a slow message, takes its time."""

    def execute(self, step: Any) -> np.ndarray:
        """A step; one that reads a part of a slow message takes a while."""
        if b"slow" in bytes(token for token in step.input_ids.tolist() if token < 256):
            READING.touch()
        if READING.exists() and len(step.input_ids) > 1:
            time.sleep(0.2)
        return super().execute(step)

    def logits(self, step: Any, index: int) -> np.ndarray:
        """All on the script's next byte, or on the end."""
        position = int(step.past_seqlens[0]) + index
        bank = self.info.plan.banks[0]
        tokens = self._read(bank, step.tables["global"].block_table[0], np.arange(position + 1)).tolist()
        row = np.zeros(VOCAB, np.float32)
        parts = _split(tokens)
        if not parts[-1].startswith(b"assistant\n"):  # in the middle of a prompt; nobody samples it
            return row
        said = parts[-1].removeprefix(b"assistant\n")
        message = parts[-2].removeprefix(b"user\n").removesuffix(b"\n").decode()
        reply = SCRIPT.get(message, f"You said: {message}").encode()
        if message == "count":
            time.sleep(0.01)
        row[reply[len(said)] if len(said) < len(reply) else SPECIAL["<|im_end|>"]] = 1
        return row


def _split(tokens: list[int]) -> list[bytes]:
    """What stands between the control tokens that begin messages, the ends left out."""
    parts: list[bytes] = []
    for token in tokens:
        if token == SPECIAL["<|im_start|>"]:
            parts.append(b"")
        elif token < 256:
            parts[-1] += bytes([token])
    return parts


def main(context: int) -> None:
    """Chat until the user leaves."""
    engine = ScriptedEngine(PLAN, context // 16 + 8, vocab=VOCAB, context=context)
    llm = LLM(engine, ByteTokenizer(), RuntimeConfig(max_num_batched_tokens=16))
    model = ChatModel("scripted (bytes)", PLAN, AttentionShape(1, 1, 1, 2), context)
    with llm.session("Be kind.", on_overflow="drop_oldest") as session:
        run_chat(Conversation(session, SamplingParams(max_tokens=6000), model, get_console()))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 16384)

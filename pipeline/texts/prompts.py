"""What the model is given to write from: the seed prompts, in an order that follows the text's seed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kvfold.export.checkpoint.checkpoint_tokenizer import CheckpointTokenizer
from kvfold.plugins.contract.errors import CalibrationError
from kvfold.runtime.text.tokenizer import BundleTokenizer

SEED_PROMPTS = Path(__file__).parent / "seed_prompts.txt"
CHAT_MARK = "> "  # a line that starts so is a user's message; any other is text to continue
REPLY = "A reply."  # stands for the model's own, to see what a template puts after it


@dataclass(frozen=True)
class SeedPrompt:
    """A prompt.

    Attributes:
        text: a user's message, or the beginning of a text.
        is_chat: whether it is a message, under the model's chat template.
        first: token ids where it begins a row.
        later: token ids where it follows what the model ended.
    """

    text: str
    is_chat: bool
    first: list[int]
    later: list[int]


class Prompts:
    """The seed prompts as every row is given them.

    Attributes:
        ends: tokens that end the model's reply or text; the next prompt follows.
    """

    def __init__(self, tokenizer: CheckpointTokenizer, seed: int) -> None:
        """Encode them; raises CalibrationError where the vocabulary has tokens for none."""
        lines = [line for line in SEED_PROMPTS.read_text(encoding="utf-8").splitlines() if line]
        reader = BundleTokenizer(tokenizer.backend, tokenizer.config)
        prompts = [encode_prompt(reader, line) for line in lines]
        # A small vocabulary may lack a whole script.
        self._prompts = [prompt for prompt in prompts if prompt.first and prompt.later]
        self._seed = seed
        self.ends = tokenizer.config.eos_token_ids
        if not self._prompts:
            raise CalibrationError(
                "the tokenizer has no token for any of the prompts that the model would write from; name a "
                ".txt or .jsonl file as the text's source"
            )

    def give(self, row: int, turn: int) -> list[int]:
        """Token ids of a row's next prompt, after `turn` others."""
        prompt = self.deal(row, turn)
        return prompt.later if turn else prompt.first

    def deal(self, row: int, turn: int) -> SeedPrompt:
        """A row's next prompt, after `turn` others.

        Each turn deals the prompts to the rows from another shuffle: neighbours never have the same one.
        """
        order = np.random.default_rng((self._seed, turn)).permutation(len(self._prompts))
        return self._prompts[int(order[row % len(order)])]


def encode_prompt(tokenizer: BundleTokenizer, line: str) -> SeedPrompt:
    """A user's message through the chat template where there is one; otherwise the text itself."""
    text = line.removeprefix(CHAT_MARK)
    if line.startswith(CHAT_MARK) and tokenizer.config.chat_template is not None:
        message = {"role": "user", "content": text}
        first = tokenizer.encode_rendered(tokenizer.render([message], add_generation_prompt=True))
        return SeedPrompt(text, is_chat=True, first=first, later=_next_turn(tokenizer, message))
    tokens = tokenizer.encode(text, control_tokens=False)
    return SeedPrompt(text, is_chat=False, first=tokens, later=tokens)


def _next_turn(tokenizer: BundleTokenizer, message: dict[str, str]) -> list[int]:
    """What the template puts between a reply and the next one, without the end the model wrote itself."""
    turns = [message, {"role": "assistant", "content": REPLY}, message]
    rendered = tokenizer.render(turns, add_generation_prompt=True)
    tokens = tokenizer.encode_rendered(rendered.rpartition(REPLY)[2])
    return tokens[1:] if tokens and tokens[0] in tokenizer.eos_token_ids else tokens

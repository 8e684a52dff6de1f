"""What the scenarios ask: prompts of an exact length, and chats of plain words."""

from __future__ import annotations

import random

from kvfold.pipeline.bench.serving.client.asks import EXACTLY, Chat, Single, Wanted, completion
from kvfold.pipeline.bench.workloads.workloads import write_prompt

# Each is a token or two in every tokenizer we know.
WORDS = (
    *("river", "stone", "garden", "winter", "letter", "window", "bread", "music", "paper", "silver"),
    *("morning", "table", "forest", "market", "people", "summer", "island", "doctor", "engine", "street"),
    *("number", "circle", "family", "travel", "story", "water", "light", "house", "green", "world"),
)


def completions(count: int, prompt_tokens: int, wanted: Wanted, vocab_size: int, seed: str) -> list[Single]:
    """Requests that share no prefix, of token ids, so that every server reads exactly as many."""
    prompts = (write_prompt(prompt_tokens, vocab_size, f"{seed} {index}") for index in range(count))
    return [Single(completion(prompt, wanted)) for prompt in prompts]


def exactly(tokens: int, stream: bool = True) -> Wanted:
    """Greedy replies of so many tokens, whatever the model wants to end."""
    return Wanted(tokens, stream, EXACTLY)


def words(count: int, draw: random.Random) -> str:
    """A message."""
    return " ".join(draw.choices(WORDS, k=count))


def chats(count: int, turns: int, message_words: int, wanted: Wanted, seed: str) -> list[Chat]:
    """Conversations that differ from their first word on."""
    draw = random.Random(seed)
    return [Chat(tuple(words(message_words, draw) for _ in range(turns)), wanted) for _ in range(count)]

"""Calibration text that the model writes itself, so that nothing must be downloaded.

A row is one sequence: it starts with a seed prompt, and when the model ends its reply or its text, the
next prompt follows in the same context, as the conversation's next turn or as the next document. So
every step feeds one token of every row, given by a prompt or sampled, and no row is ever padded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from math import ceil
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from kvfold.export.calibration.step_attention import StepAttention
from kvfold.export.checkpoint.checkpoint import Checkpoint
from kvfold.export.model.decoder import Decoder
from kvfold.export.model.matmul_dtype import matmul_dtype
from kvfold.plugins.contract.chat_template import render_chat
from kvfold.plugins.contract.plan_presets import Preset, build_plan

SEED_PROMPTS = Path(__file__).parent / "seed_prompts.txt"
CHAT_MARK = "> "  # a line that starts so is a user's message; any other is text to continue
REPLY = "A reply."  # stands for the model's own, to see what a template puts after it
CACHE_BYTES = 2**29  # KV of the rows that are written together; one row may need more
TEMPERATURE = 0.8


@dataclass(frozen=True)
class SeedPrompt:
    """Token ids of a prompt where it begins a sequence, and where it follows what the model ended."""

    first: list[int]
    later: list[int]


def generate_sequences(checkpoint: Checkpoint, count: int, length: int, seed: int) -> Tensor:
    """Token ids, int64 [count, length], sampled from the model: each sequence is one context.

    Rows are written in groups whose KV caches take at most CACHE_BYTES, or one by one where a single
    row takes more. The same seed gives the same ids on the same machine; other CPUs may round differently.
    """
    generator = torch.Generator().manual_seed(seed)
    prompts = _endless_prompts(checkpoint, generator)
    ends = set(checkpoint.tokenizer.config.eos_token_ids)
    decoder = _fast_decoder(checkpoint)
    groups = _group_sizes(count, StepAttention.row_bytes(decoder, length))
    ticks = iter(track(range(len(groups) * length), "writing calibration text", console=Console(stderr=True)))
    sequences = []
    with torch.inference_mode():
        for rows in groups:
            writers = [Writer(prompts, ends) for _ in range(rows)]
            mixer = StepAttention(decoder, rows, length)
            sampled = [0] * rows  # never used: every row starts with a prompt
            written = torch.empty(rows, length, dtype=torch.int64)
            for step in range(length):
                next(ticks)
                pairs = zip(writers, sampled, strict=True)
                written[:, step] = torch.tensor([writer.choose(token) for writer, token in pairs])
                logits = decoder(written[:, step, None], mixer)[:, 0]
                sampled = sample(logits, generator).tolist()
            sequences.append(written)
        next(ticks, None)  # closes the progress bar
    return torch.cat(sequences)


class Writer:
    """Decides each token of one row: the prompt's while there is one, then the sampled one."""

    def __init__(self, prompts: Iterator[SeedPrompt], ends: set[int]) -> None:
        self.prompts = prompts
        self.ends = ends
        self.queue = deque(next(prompts).first)

    def choose(self, sampled: int) -> int:
        """The row's next token; after the model's end of a reply or text, the next prompt is queued."""
        if self.queue:
            return self.queue.popleft()
        if sampled in self.ends:
            self.queue.extend(next(self.prompts).later)
        return sampled


def _group_sizes(count: int, row_bytes: int) -> list[int]:
    """`count` rows in the fewest groups that fit CACHE_BYTES, as equal as can be."""
    groups = ceil(count / max(1, CACHE_BYTES // row_bytes))
    return [count // groups + (index < count % groups) for index in range(groups)]


def sample(logits: Tensor, generator: torch.Generator) -> Tensor:
    """One token of each row, [B] of [B, vocab], by inverting the cumulative distribution.

    torch.multinomial draws a random number per vocabulary entry, which costs a fifth of a step.
    """
    cumulative = torch.softmax(logits.float() / TEMPERATURE, dim=-1).cumsum(dim=-1)
    threshold = torch.rand(len(logits), 1, generator=generator) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, threshold, right=True)[:, 0].clamp(max=logits.shape[1] - 1)


def _fast_decoder(checkpoint: Checkpoint) -> Decoder:
    """The unfolded model, in bfloat16 where this CPU multiplies it natively."""
    plan = build_plan(Preset(preset="identity"), checkpoint.config.attention_shape)
    return Decoder.from_weights(checkpoint.config, plan, checkpoint.weights).to(matmul_dtype())


def _endless_prompts(checkpoint: Checkpoint, generator: torch.Generator) -> Iterator[SeedPrompt]:
    """The seed prompts, shuffled once, then over and over."""
    lines = [line for line in SEED_PROMPTS.read_text(encoding="utf-8").splitlines() if line]
    order = torch.randperm(len(lines), generator=generator).tolist()
    prompts = [_seed_prompt(checkpoint, lines[index]) for index in order]
    # A small vocabulary may lack a whole script.
    return cycle([prompt for prompt in prompts if prompt.first and prompt.later])


def _seed_prompt(checkpoint: Checkpoint, line: str) -> SeedPrompt:
    """A user's message through the chat template where there is one; otherwise the text itself."""
    config = checkpoint.tokenizer.config
    encode = checkpoint.tokenizer.encode
    text = line.removeprefix(CHAT_MARK)
    if line.startswith(CHAT_MARK) and config.chat_template is not None:
        message = {"role": "user", "content": text}
        return SeedPrompt(encode(render_chat(config, [message])), _next_turn(checkpoint, message))
    start = [config.bos_token_id] if config.add_bos_token and config.bos_token_id is not None else []
    tokens = start + encode(text)
    return SeedPrompt(tokens, tokens)


def _next_turn(checkpoint: Checkpoint, message: dict[str, str]) -> list[int]:
    """What the template puts between a reply and the next one, without the end the model wrote itself."""
    config = checkpoint.tokenizer.config
    turns = [message, {"role": "assistant", "content": REPLY}, message]
    tokens = checkpoint.tokenizer.encode(render_chat(config, turns).rpartition(REPLY)[2])
    return tokens[1:] if tokens and tokens[0] in config.eos_token_ids else tokens

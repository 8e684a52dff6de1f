"""Calibration text that the model writes itself, so that nothing must be downloaded.

Rows of a batch are streams of equal length: a row continues a seed prompt, and when the model ends
that text the row goes on with the next prompt. So every step feeds one token of every row, given by
a prompt or sampled, and no row is ever padded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import cycle
from math import ceil
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from export.calibration.step_attention import StepAttention
from export.checkpoint.checkpoint import Checkpoint
from export.model.decoder import Decoder
from plugins.chat_template import render_chat
from plugins.plan_presets import Preset, build_plan

SEED_PROMPTS = Path(__file__).parent / "seed_prompts.txt"
CHAT_MARK = "> "  # a line that starts so is a user's message; any other is text to continue
STREAM_LENGTH = 256
TEMPERATURE = 0.8


def generate_tokens(checkpoint: Checkpoint, tokens: int, seed: int) -> Tensor:
    """`tokens` token ids, int64 [tokens], sampled from the model in streams of STREAM_LENGTH.

    The same seed gives the same ids on the same machine; other CPUs may round differently.
    """
    length = min(STREAM_LENGTH, tokens, checkpoint.config.max_position_embeddings)
    rows = ceil(tokens / length)
    generator = torch.Generator().manual_seed(seed)
    prompts = _endless_prompts(checkpoint, generator)
    pending = [deque(next(prompts)) for _ in range(rows)]
    ends = set(checkpoint.tokenizer.config.eos_token_ids)
    decoder = _fast_decoder(checkpoint)
    mixer = StepAttention(decoder, rows, length)
    streams = torch.empty(rows, length, dtype=torch.int64)
    sampled = [0] * rows  # never used: every row starts with a prompt
    with torch.inference_mode():
        for step in track(range(length), "writing calibration text", console=Console(stderr=True)):
            for row, queue in enumerate(pending):
                streams[row, step] = queue.popleft() if queue else sampled[row]
                if not queue and int(streams[row, step]) in ends:
                    queue.extend(next(prompts))
            logits = decoder(streams[:, step, None], mixer)[:, 0]
            sampled = sample(logits, generator).tolist()
    return streams.flatten()[:tokens]


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
    decoder = Decoder.from_weights(checkpoint.config, plan, checkpoint.weights)
    features = torch.cpu.get_capabilities()
    native = any(features.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return decoder.to(torch.bfloat16) if native else decoder


def _endless_prompts(checkpoint: Checkpoint, generator: torch.Generator) -> Iterator[list[int]]:
    """Token ids of the seed prompts, shuffled once, then over and over."""
    lines = [line for line in SEED_PROMPTS.read_text(encoding="utf-8").splitlines() if line]
    order = torch.randperm(len(lines), generator=generator).tolist()
    prompts = [_prompt_tokens(checkpoint, lines[index]) for index in order]
    return cycle([prompt for prompt in prompts if prompt])  # a small vocabulary may lack a whole script


def _prompt_tokens(checkpoint: Checkpoint, line: str) -> list[int]:
    """A user's message through the chat template where there is one; otherwise the text itself."""
    config = checkpoint.tokenizer.config
    text = line.removeprefix(CHAT_MARK)
    if line.startswith(CHAT_MARK) and config.chat_template is not None:
        return checkpoint.tokenizer.encode(render_chat(config, [{"role": "user", "content": text}]))
    start = [config.bos_token_id] if config.add_bos_token and config.bos_token_id is not None else []
    return start + checkpoint.tokenizer.encode(text)

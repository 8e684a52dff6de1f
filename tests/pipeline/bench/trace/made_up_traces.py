"""Small traces, and the plans that they are replayed with."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

from kvfold.pipeline.bench.describe_machine import Machine
from kvfold.pipeline.bench.trace.trace_file import BLOCK_TOKENS, FIELDS, TraceRequest
from kvfold.pipeline.bench.trace.trace_results import BudgetResult, TraceResult
from kvfold.plugins.contract.attention_shape import AttentionShape
from kvfold.plugins.contract.plan_presets import Preset, build_plan

SHAPE = AttentionShape(num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=16)
WINDOWED = build_plan(Preset(preset="horizon", sliding_window=32, sink_size=4, global_every=2), SHAPE)
GLOBAL = build_plan(Preset(preset="identity", kv_dtype="bfloat16"), SHAPE)  # what unfolded means
TRACE_RESULT = TraceResult(
    command="kvfold bench compact --trace a.jsonl",
    machine=Machine("a CPU", "Linux", "3.11", 0.25, "2026-01-01T00:00:00Z"),
    trace="a.jsonl",
    plan="30 layers keep 30 KV banks",
    unfolded_token_bytes=23040,
    requests=3000,
    prompt_tokens=2_533_001,
    continued=790,
    block_tokens=32,
    ends="chat",
    at_once=8,
    step_tokens=512,
    context=8192,
    endless=0.329,
    endless_ideal=0.314,
    budgets=(
        BudgetResult(8 << 20, 0.02, 0.021, 0.019, 0.0, 0.123, 12, 1234, 9876, 1234.0, 2345.0),
        BudgetResult(1 << 30, 0.195, 0.235, 0.045, 0.075, 0.0, 0, 0, 8876, 370.0, 568.0),
    ),
)


def request(length: int, names: Sequence[int], reply: int = 16) -> TraceRequest:
    """A prompt of so many tokens."""
    return TraceRequest(0, length, reply, tuple(names))


def random_requests(seed: int, count: int) -> list[TraceRequest]:
    """Conversations that branch, among prompts that share nothing or their first block alone."""
    rng = random.Random(seed)
    known: list[tuple[int, ...]] = [(0,)]
    requests = []
    for _ in range(count):
        whole = (*rng.choice(known), *(rng.randrange(1, 1 << 40) for _ in range(rng.randrange(3))))
        known.append(whole)
        last = rng.randrange(BLOCK_TOKENS)
        names = (*whole, rng.randrange(1, 1 << 40)) if last else whole
        requests.append(request(len(whole) * BLOCK_TOKENS + last, names, rng.randrange(900)))
    return requests


def chat_requests(seed: int, count: int) -> list[TraceRequest]:
    """Turns of forty chats in any order; each goes on where it was, until it is long and a new one begins."""
    rng = random.Random(seed)
    chats: list[tuple[int, ...]] = [(0,)] * 40
    requests = []
    for _ in range(count):
        chat = rng.randrange(len(chats))
        said = (*chats[chat], *(rng.randrange(1, 1 << 40) for _ in range(rng.randrange(1, 4))))
        chats[chat] = said if len(said) < 16 else (0,)
        requests.append(request(len(said) * BLOCK_TOKENS, said, rng.randrange(1, 600)))
    return requests


def write_requests(path: Path, requests: Iterable[TraceRequest]) -> Path:
    """A trace's file."""
    rows = ([each.timestamp, each.input_length, each.output_length, [*each.hash_ids]] for each in requests)
    path.write_text("".join(json.dumps(dict(zip(FIELDS, row, strict=True))) + "\n" for row in rows))
    return path

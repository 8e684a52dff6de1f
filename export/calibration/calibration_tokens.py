"""calibration_tokens: the one entry, whatever the text comes from."""

from __future__ import annotations

from math import ceil
from pathlib import Path

import torch
from torch import Tensor

from kvfold.export.calibration.documents import read_documents
from kvfold.export.calibration.generate import generate_sequences
from kvfold.export.checkpoint.checkpoint import Checkpoint
from kvfold.plugins.contract.errors import CalibrationError

GENERATE = "generate"
# A file is read until it gave this many times the tokens asked for; sequences are drawn from those.
POOL = 8


def calibration_tokens(
    source: str | Path, checkpoint: Checkpoint, tokens: int, sequence_length: int, seed: int
) -> Tensor:
    """At least `tokens` token ids, int64 [N, sequence_length]; the same arguments give the same ids.

    (But for chats under a template that writes today's date.)

    Args:
        source: a .txt or .jsonl file, or "generate": the model continues the seed prompts.
        checkpoint: whose tokenizer (and, for "generate", weights) are used.
        tokens: rounded up to whole sequences.
        sequence_length: tokens of each sequence, at most the model's context.
        seed: draws the sequences of a long file, or samples the generated text.

    Raises:
        CalibrationError: the file is missing, unreadable, malformed or too short, or the sizes make no sense.
    """
    longest = checkpoint.config.max_position_embeddings
    if tokens < 1 or not 2 <= sequence_length <= longest:
        raise CalibrationError(
            f"cannot calibrate on {tokens} tokens in sequences of {sequence_length}; ask for at least "
            f"1 token and for sequences of 2 to {longest} tokens"
        )
    count = ceil(tokens / sequence_length)
    if source == GENERATE:
        return generate_sequences(checkpoint, count, sequence_length, seed)
    sequences = _read_sequences(Path(source), checkpoint, count, sequence_length)
    order = torch.randperm(len(sequences), generator=torch.Generator().manual_seed(seed))
    return sequences[order[:count].sort().values]


def _read_sequences(path: Path, checkpoint: Checkpoint, count: int, sequence_length: int) -> Tensor:
    """Sequences packed from a file's documents, between `count` and POOL * count of them."""
    tokenizer = checkpoint.tokenizer
    start = tokenizer.config.bos_token_id if tokenizer.config.add_bos_token else None
    ids: list[int] = []
    for document in read_documents(path, tokenizer.config):
        ids += [start] if start is not None and document.needs_bos else []
        ids += tokenizer.encode(document.text)
        if len(ids) >= POOL * count * sequence_length:
            break
    found, needed = len(ids), count * sequence_length
    if found < needed:
        raise CalibrationError(
            f"{path} gives {found} tokens, {needed} are needed; add text, ask for fewer calibration tokens, "
            f'or use "{GENERATE}"'
        )
    whole = found // sequence_length
    return torch.tensor(ids[: whole * sequence_length]).reshape(whole, sequence_length)

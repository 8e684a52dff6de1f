"""read_texts: the one entry to a recipe's texts, whatever they come from."""

from __future__ import annotations

from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kvfold.pipeline.recipe.recipe_sections import GENERATE, SHAREGPT, SHAREGPT_HELD_OUT, Texts, TextSection
from kvfold.pipeline.texts.documents import read_documents
from kvfold.pipeline.texts.writer import write_text
from kvfold.pipeline.workspace.fetch import MODEL_CACHE, fetch_conversations
from kvfold.plugins.contract.errors import CalibrationError
from kvfold.plugins.contract.progress import Progress, part
from kvfold.runtime.text.tokenizer import BundleTokenizer

if TYPE_CHECKING:
    from kvfold.export.checkpoint import Checkpoint

# A file is read until it gave this many times the tokens asked for; sequences are drawn from those.
POOL = 8


def read_texts(sections: Texts, checkpoint: Checkpoint, folder: Path, progress: Progress) -> Tensor:
    """At least the tokens that each section asks for, int64 [N, sequence_length]; several are shuffled.

    The same sections give the same ids, but for chats under a template that writes today's date.
    Conversations not there yet are fetched.

    Args:
        sections: of one sequence_length.
        checkpoint: whose tokenizer (and, for `generate`, weights) are used.
        folder: the writer's, as for `write_text`; made when a section asks for text that the model writes.
        progress: told while the model writes.

    Raises:
        CalibrationError: a file is missing, unreadable, malformed or too short, or the sequences are longer
            than the model's context.
        FetchError: the conversations cannot be had.
        KvfoldError: what the writer raises.
    """
    total = sum(section.tokens for section in sections)
    texts, done = [], 0
    for section in sections:
        share = part(progress, done / total, section.tokens / total)
        texts.append(_read_text(section, checkpoint, folder, share))
        done += section.tokens
    tokens = torch.cat(texts)
    if len(sections) > 1:
        tokens = tokens[torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0))]
    return tokens


def _read_text(section: TextSection, checkpoint: Checkpoint, folder: Path, progress: Progress) -> Tensor:
    length, longest = section.sequence_length, checkpoint.config.max_position_embeddings
    if length > longest:
        raise CalibrationError(
            f"a text cannot be had in sequences of {length}; the model's context allows sequences of 2 to "
            f"{longest} tokens: set sequence_length"
        )
    if section.source == GENERATE:
        return torch.from_numpy(write_text(section, checkpoint, folder, progress))
    path = Path(section.source)
    if section.source in (SHAREGPT, SHAREGPT_HELD_OUT):
        path = fetch_conversations(MODEL_CACHE, held_out=section.source == SHAREGPT_HELD_OUT)
    count = ceil(section.tokens / length)
    sequences = _read_sequences(path, checkpoint, count, length)
    order = torch.randperm(len(sequences), generator=torch.Generator().manual_seed(section.seed))
    return sequences[order[:count].sort().values]


def _read_sequences(path: Path, checkpoint: Checkpoint, count: int, sequence_length: int) -> Tensor:
    """Sequences packed from a file's documents, between `count` and POOL * count of them."""
    config = checkpoint.tokenizer.config
    tokenizer = BundleTokenizer(checkpoint.tokenizer.backend, config)
    ids: list[int] = []
    for document in read_documents(path, config):
        if document.needs_bos:
            ids += tokenizer.encode(document.text, control_tokens=False)
        else:
            ids += tokenizer.encode_rendered(document.text)
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

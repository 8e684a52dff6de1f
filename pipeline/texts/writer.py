"""Text that the model writes itself, so that nothing must be downloaded.

A row is one sequence and one context: it starts with a seed prompt, and when the model ends its reply or
its text, the next prompt follows, as the conversation's next turn or as the next document. A reply that goes
on and on is ended for it: a small model then repeats itself. Rows run side by side through the runtime's
loop, piece by piece: a piece is a request that goes on from the cache of the one before it, drawn by a
seed of its own. So a row depends on nothing beside it, and one that was interrupted goes on with the draws
that it would have had.
"""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kvfold.pipeline.recipe.recipe_sections import TextSection
from kvfold.pipeline.texts.prompts import Prompts
from kvfold.pipeline.texts.writer_engine import load_writer_engine, unfolded_plan, writer_key
from kvfold.pipeline.texts.written_rows import Row, RowsFile
from kvfold.runtime.engine.protocol import Engine
from kvfold.runtime.engine.slabs import UNITS, bytes_of_slabs, slab_pages
from kvfold.runtime.loop.commands import Discard
from kvfold.runtime.loop.engine_loop import EngineLoop
from kvfold.runtime.loop.ticket import Ticket
from kvfold.runtime.runtime_config import RuntimeConfig
from kvfold.runtime.sampling.params import SamplingParams
from kvfold.runtime.sampling.sampling_state import SamplingState
from kvfold.runtime.scheduler.request import Prompt, Request

if TYPE_CHECKING:
    from kvfold.export.checkpoint.checkpoint import Checkpoint
    from kvfold.plugins.contract.fold_plan import FoldPlan
    from kvfold.plugins.contract.progress import Progress

KV_BYTES = 2**31  # cache of the rows that are written side by side; one row may need more
MAX_ROWS = 60  # more write no faster; ONNX Runtime multiplies rows by the dozen
PIECE = 64  # tokens that a kill costs a row at most
LONGEST_REPLY = 4 * PIECE  # tokens, its prompt counted
TEMPERATURE = 0.8


def write_text(section: TextSection, checkpoint: Checkpoint, folder: Path, progress: Progress) -> np.ndarray:
    """Token ids, int64 [count, sequence_length], sampled from the unfolded model: at least `section.tokens`.

    The same seed gives the same ids on the same machine, also after a kill; other CPUs may round differently.

    Args:
        section: of sequences that fit the model's context.
        checkpoint: the model, and its tokenizer.
        folder: keeps the engine and the rows written so far; of another checkpoint or code, nothing.
        progress: told the share of the tokens that are written.

    Raises:
        CalibrationError: the vocabulary has no token for any prompt.
        ExportError, BundleError, KernelError: the engine cannot be made or loaded on this machine.
    """
    own = folder / writer_key(checkpoint)
    for other in folder.iterdir() if folder.exists() else ():
        if other != own:
            shutil.rmtree(other)
    own.mkdir(parents=True, exist_ok=True)
    length = section.sequence_length
    prompts = Prompts(checkpoint.tokenizer, section.seed)
    file = RowsFile(own / f"seed-{section.seed}-length-{length}.jsonl")
    rows = file.read(ceil(section.tokens / length), prompts.ends)
    written = sum(len(row.tokens) for row in rows)
    if written < len(rows) * length:
        progress(written / (len(rows) * length), "preparing the model to write")
        plan = unfolded_plan(checkpoint)
        together = min(len(rows), MAX_ROWS, max(1, KV_BYTES // plan.kv_bytes(length)))
        engine = load_writer_engine(checkpoint, plan, own, _kv_cache_bytes(plan, together, length))
        Writer(engine, together, section, prompts, file).write(rows, progress)
    return np.array([row.tokens for row in rows])


def _kv_cache_bytes(plan: FoldPlan, rows: int, length: int) -> int:
    """For so many rows, and the reserve that the scheduler wants for the others where it admits one."""
    pages = {group.name: rows * (ceil(length / plan.page_size) + 1) for group in plan.groups}
    return bytes_of_slabs(plan, pages, slab_pages(plan, UNITS["cpu"]))


class Writer:
    """Brings rows to their length, as many side by side as it has room for."""

    def __init__(
        self, engine: Engine, together: int, section: TextSection, prompts: Prompts, file: RowsFile
    ) -> None:
        """A writer of one text.

        Args:
            engine: the unfolded model, with pages for so many rows.
            together: rows that are written side by side.
            section: its seed and its sequence_length.
            prompts: of the section's seed.
            file: keeps each piece.
        """
        self._loop = EngineLoop(engine, RuntimeConfig(max_num_seqs=together))
        self._together = together
        self._section = section
        self._prompts = prompts
        self._file = file
        self._running: dict[Ticket, Row] = {}
        self._written = 0

    def write(self, rows: Sequence[Row], progress: Progress) -> None:
        """Write what each row lacks."""
        length = self._section.sequence_length
        waiting = deque(row for row in rows if len(row.tokens) < length)
        total, found = len(rows) * length, sum(len(row.tokens) for row in rows)
        self._written, start = found, time.perf_counter()
        while waiting or self._running:
            while waiting and len(self._running) < self._together:
                self._begin_piece(waiting.popleft())
            for ticket in self._loop.turn().advanced:
                self._written += 1
                if ticket.ended:
                    self._end_piece(ticket)
            if self._loop.failure is not None:
                raise self._loop.failure
            pace = (self._written - found) / (time.perf_counter() - start)
            note = f"{self._written:,} of {total:,} tokens, {pace:,.0f} tokens/s"
            progress(self._written / total, note)

    def _begin_piece(self, row: Row) -> None:
        """Let the model go on with a row, after a prompt where it wants one; a full row is done."""
        room = self._section.sequence_length - len(row.tokens)
        if room and row.answered >= LONGEST_REPLY and not row.wants_prompt and self._prompts.ends:
            self._keep(row, [self._prompts.ends[0]])
            self._written += 1
            room -= 1
        given = self._prompts.give(row.index, row.turn)[:room] if row.wants_prompt else []
        ids = row.tokens + given
        self._written += len(given)
        if len(given) < room:
            self._submit(row, ids, min(PIECE, room - len(given)))
            return
        if given:
            self._keep(row, given)
        if row.kept is not None:
            self._loop.post(Discard(row.kept))
            row.kept = None

    def _submit(self, row: Row, ids: list[int], max_tokens: int) -> None:
        seed = np.random.SeedSequence((self._section.seed, row.index, len(ids))).generate_state(1, np.uint64)
        params = SamplingParams(temperature=TEMPERATURE, seed=int(seed[0]), max_tokens=max_tokens)
        prompt, info = Prompt(np.array(ids), kept=row.kept), self._loop.info
        ends = self._prompts.ends
        request = Request(prompt, max_tokens, info, end_tokens=frozenset(ends), keep=True)
        ticket = Ticket(request, SamplingState(params, prompt.token_ids, ends, info.vocab_size))
        self._running[ticket] = row
        self._loop.submit(ticket)

    def _end_piece(self, ticket: Ticket) -> None:
        row = self._running.pop(ticket)
        if ticket.error is not None:
            raise ticket.error
        request = ticket.request
        row.kept = request.sequence
        self._keep(row, request.tokens[len(row.tokens) : request.length].tolist())
        self._begin_piece(row)

    def _keep(self, row: Row, piece: list[int]) -> None:
        row.add(piece, self._prompts.ends)
        self._file.append(row.index, piece)

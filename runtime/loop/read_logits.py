"""The logits of a text's tokens, through the loop as a prompt that has no reply."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np

from kvfold.runtime.loop.commands import Cancel
from kvfold.runtime.loop.engine_loop import EngineLoop
from kvfold.runtime.loop.ticket import Ticket
from kvfold.runtime.scheduler.request import Prompt, Request


def read_logits(loop: EngineLoop, token_ids: np.ndarray, first: int = 0) -> Iterator[tuple[int, np.ndarray]]:
    """Logits of positions [first, L) of tokens int64 [L]: float32 [rows, vocab], with the first position.

    What comes before `first` may be taken from the cache. Rows come a step's worth at a time.

    Raises:
        RequestError: the text is empty, longer than the context, or has token ids out of range.
        CapacityError: it needs more pages than the whole pool has.
    """
    found: deque[tuple[int, np.ndarray]] = deque()

    def keep(position: int, rows: np.ndarray) -> None:
        found.append((position, rows.copy()))  # the engine's next step overwrites them

    request = Request(Prompt(token_ids, logits_from=first), 0, loop.info)
    ticket = Ticket(request, None, logits_sink=keep)
    loop.submit(ticket)
    try:
        while found or not ticket.ended:
            while found:
                yield found.popleft()
            if not ticket.ended:
                loop.advance(lambda: bool(found) or ticket.ended)
        if ticket.error is not None:
            raise ticket.error
    finally:
        loop.post(Cancel(ticket))
        loop.settle()

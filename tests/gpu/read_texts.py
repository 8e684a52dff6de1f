"""Texts read by an engine in steps of every kind. Needs neither torch nor Triton, as engines do not."""

from __future__ import annotations

import numpy as np

from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.runtime.engine.protocol import Engine
from tests.paging import Pager, commit_first

NUM_PAGES = 64
# Up to ALONE each text is read alone, then all together, and from DECODED on one token of each a step. A plan
# of the tiny recipe has room for 40 rows of logits: those of four texts in the chunk between.
ALONE, DECODED = 40, 50


def read_texts(engine: Engine, plan: FoldPlan, texts: np.ndarray) -> np.ndarray:
    """Logits [N, L, vocab_size] of every token of texts [N, L], N >= 2, from empty caches.

    Positions before DECODED come from a TensorRT plan's prefill profile, the others from its decode profile.
    """
    commit_first(engine, NUM_PAGES)
    pager = Pager(plan, NUM_PAGES)
    logits: list[list[np.ndarray]] = [[] for _ in texts]
    for index, text in enumerate(texts):
        logits[index].append(engine.execute(pager.step({index: text[:ALONE].tolist()})).copy())
    ends = (DECODED, *range(DECODED + 1, texts.shape[1] + 1))
    start = ALONE
    for end in ends:
        step = {index: text[start:end].tolist() for index, text in enumerate(texts)}
        rows = engine.execute(pager.step(step)).copy().reshape(len(texts), end - start, -1)
        for index, own in enumerate(rows):
            logits[index].append(own)
        start = end
    return np.stack([np.concatenate(parts) for parts in logits])

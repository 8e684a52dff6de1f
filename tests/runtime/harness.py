"""What several tests of the runtime share: plans that stress the paging, and LLMs over them."""

from __future__ import annotations

import numpy as np

from kvfold.plugins.contract.fold_plan import FoldPlan
from kvfold.runtime.llm.llm import LLM
from kvfold.runtime.memory.tiers.kv_tier import KvTier
from kvfold.runtime.runtime_config import RuntimeConfig
from tests.runtime.byte_tokenizer import VOCAB, ByteTokenizer
from tests.runtime.synthetic_engine import SyntheticEngine, make_plan

PLANS = {
    "global": make_plan((None, 0)),
    "hybrid": make_plan((None, 0), (32, 4), (32, 4)),
    "local": make_plan((24, 0)),
    "locals": make_plan((16, 0), (48, 20)),
    "many": make_plan((None, 0), (20, 2), (40, 17), (1, 0)),
}


def make_llm(
    plan: FoldPlan,
    pages: int = 64,
    batched: int = 64,
    seqs: int = 4,
    context: int = 512,
    slab: int = 1,
    tier: KvTier | None = None,
    kind: type[SyntheticEngine] = SyntheticEngine,
) -> tuple[LLM, SyntheticEngine]:
    """An LLM over a synthetic engine whose tokens are bytes and which never ends by itself."""
    engine = kind(plan, pages, vocab=VOCAB, context=context, slab=slab)
    config = RuntimeConfig(max_num_batched_tokens=batched, max_num_seqs=seqs)
    return LLM(engine, ByteTokenizer(()), config, tier), engine


def check(llm: LLM) -> None:
    """Every page has exactly its holders."""
    scheduler = llm.generator.loop.core.scheduler
    scheduler.memory.check_integrity(scheduler.sequences)


def in_use(llm: LLM) -> int:
    """Pages that a request or a session holds now."""
    return sum(pool.in_use for pool in llm.metrics.pools.values())


def make_prompts(seed: int = 0) -> list[list[int]]:
    """Prompts that share prefixes, cross page borders, or are tiny."""
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 256, 112).tolist()
    shapes = [(100, 3), (60, 30), (33, 5), (100, 3), (0, 1), (0, 90), (112, 0), (96, 1)]
    return [base[:shared] + rng.integers(0, 256, own).tolist() for shared, own in shapes]

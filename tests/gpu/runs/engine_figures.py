"""Figures of an engine on the GPU: decode and prefill tokens a second, and a second turn, from a bundle."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from tests.gpu.runs.kernel_figures import Figure

DECODES = (1, 8, 64, 256)
PREFILLS = ((1, 128), (1, 7000), (32, 2048))
REPLY, TURN = 64, 2000
KV_CACHE_BYTES = 8 << 30


class EngineLab(Protocol):
    """An engine and a clock."""

    def generate(self, prompts: int, prompt_tokens: int, new_tokens: int) -> float:
        """Seconds for so many random prompts to get so many tokens each, greedily."""
        ...

    def second_turn(self, tokens: int) -> float:
        """Seconds from the second question to its first token, in a conversation of so many tokens."""
        ...


def engine_figures(lab: EngineLab) -> Iterator[Figure]:
    """Each twice: the first run of a shape compiles, captures and allocates."""
    for sequences in DECODES:
        for length in (1, REPLY):
            lab.generate(sequences, 16, length)
        alone = lab.generate(sequences, 16, 1)
        seconds = lab.generate(sequences, 16, REPLY) - alone
        rate = sequences * (REPLY - 1) / seconds
        yield Figure(f"decode, {sequences} sequences", f"{rate:,.0f} tokens/s")
    for sequences, length in PREFILLS:
        lab.generate(sequences, length, 1)
        seconds = lab.generate(sequences, length, 1)
        yield Figure(f"prefill, {sequences} x {length:,}", f"{sequences * length / seconds:,.0f} tokens/s")
    lab.second_turn(TURN)
    yield Figure(
        f"second turn of {TURN:,} tokens", f"{1e3 * lab.second_turn(TURN):.2f} ms to its first token"
    )


class BundleLab:
    """A bundle's engine through the runtime that users get."""

    def __init__(self, bundle: Path, target: str) -> None:
        """Load the engine; errors as of `LLM.load`."""
        import numpy as np

        from kvfold import LLM, RuntimeConfig

        self._rng = np.random.default_rng(0)
        config = RuntimeConfig(KV_CACHE_BYTES, max_num_batched_tokens=8192, max_num_seqs=max(DECODES))
        self._llm: Any = LLM.load(bundle, config, target)

    def generate(self, prompts: int, prompt_tokens: int, new_tokens: int) -> float:
        """As `EngineLab.generate`; prompts are new each time, so no page is found again."""
        from kvfold import SamplingParams

        params = SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True)
        asked = [self._tokens(prompt_tokens) for _ in range(prompts)]
        start = time.perf_counter()
        self._llm.generate(asked, params)
        return time.perf_counter() - start

    def second_turn(self, tokens: int) -> float:
        """As `EngineLab.second_turn`: the same tokens and sixteen more."""
        from kvfold import SamplingParams

        params = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)
        first = self._tokens(tokens)
        self._llm.generate([first], params)
        start = time.perf_counter()
        self._llm.generate([[*first, *self._tokens(16)]], params)
        return time.perf_counter() - start

    def _tokens(self, count: int) -> list[int]:
        tokens: list[int] = self._rng.integers(100, 1000, count).tolist()
        return tokens

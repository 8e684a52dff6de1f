"""vLLM in one process: float16, its paged cache, prefix caching and CUDA graphs, as it comes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvfold.pipeline.bench.contenders import transformers as on_cpu
from kvfold.pipeline.bench.contenders.contender import Generation, Limits

TITLE = "vLLM"
WEIGHTS = "float16"
PACKAGE = "vllm"
INSTALL = "pip install vllm"

prepare = on_cpu.prepare


def load(model: Path, limits: Limits) -> VllmContender:
    """Load with a context for the longest sequence; its engine works in this process."""
    import os

    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    import vllm

    engine = vllm.LLM(
        model=str(model),
        dtype="float16",
        skip_tokenizer_init=True,
        max_model_len=limits.longest,
        max_num_seqs=limits.sequences,
        enable_prefix_caching=True,
        disable_log_stats=True,
    )
    return VllmContender(engine.llm_engine, vllm)


class VllmContender:
    """Steps its engine itself, so that every token's arrival is known."""

    def __init__(self, engine: Any, vllm: Any) -> None:
        """An engine of `vllm`, the module."""
        self._engine = engine
        self._vllm = vllm
        self._count = 0

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> Generation:
        """See `Contender.generate`."""
        params = self._vllm.SamplingParams(
            temperature=0.0, max_tokens=new_tokens, ignore_eos=True, detokenize=False
        )
        started = time.perf_counter()
        names = [f"{self._count}-{index}" for index in range(len(prompts))]
        self._count += 1
        for name, prompt in zip(names, prompts, strict=True):
            self._engine.add_request(name, {"prompt_token_ids": list(prompt)}, params)
        tokens: dict[str, list[int]] = {name: [] for name in names}
        arrivals: dict[str, list[float]] = {name: [] for name in names}
        while self._engine.has_unfinished_requests():
            outputs = self._engine.step()
            clock = time.perf_counter()
            for output in outputs:
                said = list(output.outputs[0].token_ids)
                arrivals[output.request_id] += [clock] * (len(said) - len(tokens[output.request_id]))
                tokens[output.request_id] = said
        return Generation(started, [tokens[name] for name in names], [arrivals[name] for name in names])

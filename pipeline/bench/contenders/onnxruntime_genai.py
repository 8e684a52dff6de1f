"""onnxruntime-genai: its model builder's int8 graph (MatMulNBits, int8 activations) and its Generator."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kvfold.pipeline.bench.contenders.common_prefix import common_prefix
from kvfold.pipeline.bench.contenders.contender import Generation, Limits
from kvfold.pipeline.bench.contenders.run_tool import run_tool

if TYPE_CHECKING:
    import onnxruntime_genai as og

TITLE = "onnxruntime-genai"
WEIGHTS = "int8"
PACKAGE = "onnxruntime-genai"
INSTALL = 'pip install onnxruntime-genai onnx onnx-ir torch "transformers>=5.5"'


BLOCK = 32  # weights of a scale


def prepare(source: Path, target: Path) -> None:
    """Run its model builder for int8."""
    build(source, target, WEIGHTS)


def build(source: Path, target: Path, weights: str) -> None:
    """Run its model builder with its defaults on the CPU, blocks of 32, but logits of the last token only.

    Without that option a prompt's logits are all computed: slower, and vocab_size floats a token.
    """
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
    paths = ["-i", str(source), "-o", str(target), "-c", str(target / "cache")]
    options = ["-p", weights, "-e", "cpu", "--extra_options", "prune_lm_head=true", f"block_size={BLOCK}"]
    run_tool([*builder, *paths, *options])


def load(model: Path, limits: Limits) -> OnnxRuntimeGenaiContender:
    """Load with the number of threads as an overlay of its config file."""
    import onnxruntime_genai as og

    config = og.Config(str(model))
    threads = {"session_options": {"intra_op_num_threads": limits.threads}}
    config.overlay(json.dumps({"model": {"decoder": threads}}))
    return OnnxRuntimeGenaiContender(og.Model(config), limits)


class OnnxRuntimeGenaiContender:
    """Generators over one model; keeps the last single sequence's, which can continue."""

    def __init__(self, model: og.Model, limits: Limits) -> None:
        self._model = model
        self._limits = limits
        self._generator: og.Generator | None = None
        self._cached: list[int] = []

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> Generation:
        """See `Contender.generate`."""
        import numpy as np

        started = time.perf_counter()
        known = common_prefix(self._cached, prompts[0]) if len(prompts) == 1 else 0
        if self._generator is None or known == 0 or known < len(self._cached):
            known = 0
            self._generator = None  # frees its cache before the next one is made
            self._generator = self._start(len(prompts), len(prompts[0]) + new_tokens)
        tokens = np.array([prompt[known:] for prompt in prompts], dtype=np.int32)
        self._generator.append_tokens(tokens if len(prompts) > 1 else tokens[0])
        steps: list[list[int]] = []
        clocks: list[float] = []
        for _ in range(new_tokens):
            self._generator.generate_next_token()
            steps.append([int(token) for token in self._generator.get_next_tokens()])
            clocks.append(time.perf_counter())
        replies = [list(reply) for reply in zip(*steps, strict=True)]
        self._cached = [*prompts[0], *replies[0]] if len(prompts) == 1 else []
        return Generation(started, replies, [clocks] * len(prompts))

    def _start(self, sequences: int, length: int) -> og.Generator:
        """A fresh generator; a single sequence may grow to the whole cache, as a conversation does."""
        import onnxruntime_genai as og

        limit = self._limits.cache_tokens if sequences == 1 else length
        params = og.GeneratorParams(self._model)
        # min_length keeps the end token away.
        params.set_search_options(do_sample=False, batch_size=sequences, max_length=limit, min_length=limit)
        return og.Generator(self._model, params)

"""llama.cpp through llama-cpp-python's C bindings: Q8_0 weights, its own KV cache and defaults."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from kvfold.pipeline.bench.contenders.common_prefix import common_prefix
from kvfold.pipeline.bench.contenders.contender import Generation, Limits

TITLE = "llama.cpp"
WEIGHTS = "Q8_0"
PACKAGE = "llama-cpp-python"
INSTALL = (
    "pip install --no-binary llama-cpp-python llama-cpp-python gguf safetensors  # compiled for this CPU"
)

MODEL, SOURCE = "model.gguf", "model-q8_0.gguf"


def prepare(source: Path, target: Path) -> None:
    """Write a GGUF with Q8_0 matrices."""
    from kvfold.pipeline.bench.models.gguf_from_huggingface import write_gguf

    write_gguf(source, target / MODEL)


def prepare_requantized(source: Path, target: Path, kind: str) -> None:
    """Write a GGUF whose matrices llama.cpp itself quantises to `kind`, a name of its `llama_ftype`.

    It starts from Q8_0, which rounds weights that were 4 bits before by a 250th of a block's largest.
    """
    import llama_cpp

    from kvfold.pipeline.bench.models.gguf_from_huggingface import write_gguf

    write_gguf(source, target / SOURCE)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, kind)
    params.allow_requantize = True
    paths = [str(target / name).encode() for name in (SOURCE, MODEL)]
    if status := llama_cpp.llama_model_quantize(*paths, ctypes.byref(params)):
        raise RuntimeError(f"llama_model_quantize returned {status}; its log is above")
    (target / SOURCE).unlink()


def load(model: Path, limits: Limits) -> LlamaCppContender:
    """Load with one KV cache that all sequences share, as its server does."""
    return LlamaCppContender(model / MODEL, limits, gpu_layers=0)


class Feed(NamedTuple):
    """One token for `llama_decode`."""

    token: int
    position: int
    sequence: int
    wants_logits: bool


class LlamaCppContender:
    """Batches for `llama_decode`, an argmax over its logits; keeps sequence 0's cache."""

    def __init__(self, path: Path, limits: Limits, gpu_layers: int) -> None:
        import llama_cpp

        # Its log goes to stderr, which the bench shows only when a worker fails.
        llama_cpp.llama_backend_init()
        self._api = llama_cpp
        how = llama_cpp.llama_model_default_params()
        how.n_gpu_layers = gpu_layers
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), how)
        if model is None:
            raise RuntimeError(f"llama.cpp does not load {path}; its log is above")
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = limits.cache_tokens
        params.n_seq_max = limits.sequences
        params.kv_unified = True
        params.n_threads = params.n_threads_batch = limits.threads
        context = llama_cpp.llama_init_from_model(model, params)
        if context is None:
            raise RuntimeError(f"llama.cpp makes no context for {path}; its log is above")
        self._context = context
        self._memory = llama_cpp.llama_get_memory(context)
        self._batch_size = llama_cpp.llama_n_batch(context)
        self._batch = llama_cpp.llama_batch_init(self._batch_size, 0, 1)
        self._cached: list[int] = []

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> Generation:
        """See `Contender.generate`."""
        started = time.perf_counter()
        known = common_prefix(self._cached, prompts[0]) if len(prompts) == 1 else 0
        for sequence in range(1, len(prompts)):
            self._api.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        self._api.llama_memory_seq_rm(self._memory, 0, known, -1)
        feeds = [
            Feed(token, position, sequence, position == len(prompt) - 1)
            for sequence, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
            if position >= known
        ]
        replies: list[list[int]] = [[] for _ in prompts]
        clocks: list[float] = []
        for _ in range(new_tokens):
            for sequence, token in self._decode(feeds).items():
                replies[sequence].append(token)
            clocks.append(time.perf_counter())
            feeds = [
                Feed(reply[-1], len(prompt) + len(reply) - 1, sequence, True)
                for sequence, (prompt, reply) in enumerate(zip(prompts, replies, strict=True))
            ]
        for sequence in range(1, len(prompts)):
            self._api.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        # The last token was never fed, so its keys and values are not cached.
        self._cached = [*prompts[0], *replies[0][:-1]]
        return Generation(started, replies, [clocks] * len(prompts))

    def _decode(self, feeds: list[Feed]) -> dict[int, int]:
        """Compute the feeds, at most n_batch at once; the likeliest next token of each sequence."""
        chosen: dict[int, int] = {}
        for start in range(0, len(feeds), self._batch_size):
            part = feeds[start : start + self._batch_size]
            self._fill(part)
            status = self._api.llama_decode(self._context, self._batch)
            if status != 0:
                raise RuntimeError(f"llama_decode returned {status} for {len(part)} tokens; its log is above")
            for index, feed in enumerate(part):
                if feed.wants_logits:
                    chosen[feed.sequence] = self._likeliest(index)
        return chosen

    def _fill(self, feeds: list[Feed]) -> None:
        batch = self._batch
        batch.n_tokens = len(feeds)
        for index, feed in enumerate(feeds):
            batch.token[index] = feed.token
            batch.pos[index] = feed.position
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = feed.sequence
            batch.logits[index] = feed.wants_logits

    def _likeliest(self, index: int) -> int:
        import numpy as np

        pointer = self._api.llama_get_logits_ith(self._context, index)
        values = (ctypes.c_float * self._vocab_size).from_address(ctypes.addressof(pointer.contents))
        return int(np.frombuffer(values, dtype=np.float32).argmax())

"""transformers on a GPU: float16, scaled-dot-product attention, a static cache, compiled decoding."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvfold.pipeline.bench.contenders import transformers as on_cpu
from kvfold.pipeline.bench.contenders.common_prefix import common_prefix
from kvfold.pipeline.bench.contenders.contender import ROUNDING, Generation, Limits

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

TITLE = "transformers"
WEIGHTS = "float16"
PACKAGE = "transformers"
INSTALL = "pip install transformers torch"

prepare = on_cpu.prepare


def load(model: Path, limits: Limits) -> TransformersCudaContender:
    """Load onto the first GPU; a step that decodes becomes a CUDA graph for each size of its cache."""
    import torch
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float16, attn_implementation="sdpa")
    torch.nn.Module.to(loaded, "cuda")
    compiled = torch.compile(loaded.forward, mode="reduce-overhead", dynamic=False)
    return TransformersCudaContender(loaded, compiled, torch.cuda.synchronize)


class TransformersCudaContender:
    """A greedy loop; a cache of fixed size for each number of sequences, that of a single one is kept."""

    def __init__(
        self, model: PreTrainedModel, decode: Callable[..., Any], synchronize: Callable[[], None]
    ) -> None:
        """A model, what takes its place for single new tokens, and what waits for its device."""
        self._model = model
        self._decode = decode
        self._synchronize = synchronize
        self._caches: dict[tuple[int, int], Any] = {}
        self._cached: list[int] = []
        self._kept: Any = None

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> Generation:
        """See `Contender.generate`."""
        import torch

        started = time.perf_counter()
        length = len(prompts[0])
        cache = self._cache(len(prompts), length + new_tokens)
        single = len(prompts) == 1
        known = common_prefix(self._cached, prompts[0]) if single and cache is self._kept else 0
        known = min(known, length - 1)
        device = self._model.device
        inputs = torch.tensor([list(prompt[known:]) for prompt in prompts], device=device)
        positions = torch.arange(known, length, device=device)
        steps: list[list[int]] = []
        clocks: list[float] = []
        run: Callable[..., Any] = self._model
        with torch.inference_mode():
            if known == 0:
                cache.reset()
            for _ in range(new_tokens):
                inputs = self._likeliest(run, inputs, cache, positions)
                positions = positions[-1:] + 1
                run = self._decode
                self._synchronize()
                steps.append(inputs[:, 0].tolist())
                clocks.append(time.perf_counter())
        replies = [list(reply) for reply in zip(*steps, strict=True)]
        # The last token was never fed, so its keys and values are not cached.
        self._cached, self._kept = ([*prompts[0], *replies[0][:-1]], cache) if single else ([], None)
        return Generation(started, replies, [clocks] * len(prompts))

    @staticmethod
    def _likeliest(
        run: Callable[..., Any], inputs: torch.Tensor, cache: Any, positions: torch.Tensor
    ) -> torch.Tensor:
        output = run(inputs, past_key_values=cache, cache_position=positions, logits_to_keep=1)
        found: torch.Tensor = output.logits[:, -1].argmax(dim=-1, keepdim=True).clone()
        return found

    def _cache(self, sequences: int, tokens: int) -> Any:
        """A cache with room for so many tokens, rounded up: a second turn finds its first one's."""
        from transformers import StaticCache

        room = (sequences, -(-tokens // ROUNDING) * ROUNDING)
        if room not in self._caches:
            self._caches[room] = StaticCache(config=self._model.config, max_cache_len=room[1])
        return self._caches[room]

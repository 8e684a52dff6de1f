"""transformers: the model's own code in PyTorch, float32, with its dynamic cache."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kvfold.pipeline.bench.contenders.common_prefix import common_prefix
from kvfold.pipeline.bench.contenders.contender import Generation, Limits

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel

TITLE = "transformers"
WEIGHTS = "float32"
PACKAGE = "transformers"
INSTALL = "pip install transformers torch"


def prepare(source: Path, target: Path) -> None:
    """It reads the Hugging Face folder itself: link its files."""
    for file in source.iterdir():
        (target / file.name).symlink_to(file.resolve())


def load(model: Path, limits: Limits) -> TransformersContender:
    """Load with scaled-dot-product attention, the default."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(limits.threads)
    # from_pretrained returns a model in evaluation mode.
    return TransformersContender(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32))


class TransformersContender:
    """A greedy loop over the model; keeps the last single sequence's cache."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._cache: DynamicCache | None = None
        self._cached: list[int] = []

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> Generation:
        """See `Contender.generate`."""
        import torch
        from transformers import DynamicCache

        started = time.perf_counter()
        known = common_prefix(self._cached, prompts[0]) if len(prompts) == 1 else 0
        if self._cache is None or known == 0:
            self._cache = DynamicCache()
        else:
            self._cache.crop(known)
        inputs = torch.tensor([list(prompt[known:]) for prompt in prompts])
        steps: list[list[int]] = []
        clocks: list[float] = []
        with torch.inference_mode():
            for _ in range(new_tokens):
                output = self._model(inputs, past_key_values=self._cache, logits_to_keep=1)
                inputs = output.logits[:, -1].argmax(dim=-1, keepdim=True)
                steps.append(inputs[:, 0].tolist())
                clocks.append(time.perf_counter())
        replies = [list(reply) for reply in zip(*steps, strict=True)]
        # The last token was never fed, so its keys and values are not cached.
        self._cached = [*prompts[0], *replies[0][:-1]] if len(prompts) == 1 else []
        return Generation(started, replies, [clocks] * len(prompts))

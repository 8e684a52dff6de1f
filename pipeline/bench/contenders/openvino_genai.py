"""OpenVINO GenAI: int8 weights by optimum-intel, its continuous-batching pipeline with prefix caching."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from kvfold.pipeline.bench.contenders.contender import Generation, Limits
from kvfold.pipeline.bench.contenders.run_tool import run_tool

if TYPE_CHECKING:
    from openvino_genai import ContinuousBatchingPipeline

TITLE = "OpenVINO GenAI"
WEIGHTS = "int8"
PACKAGE = "openvino-genai"
INSTALL = 'pip install openvino-genai "optimum-intel[openvino]" nncf torch "transformers<5.6"'

BLOCK = 32  # tokens of a KV block of its CPU plugin


def prepare(source: Path, target: Path) -> None:
    """Export with optimum-intel, weights int8 per channel, activations as the CPU plugin chooses."""
    export(source, target, WEIGHTS)


def export(source: Path, target: Path, weights: str, options: Sequence[str] = ()) -> None:
    """Run optimum-intel's export with a weight format of its own, and options of that format."""
    tool = Path(sys.executable).with_name("optimum-cli")
    task = ["--task", "text-generation-with-past", "--weight-format", weights, *options]
    run_tool([str(tool), "export", "openvino", "--model", str(source), *task, str(target)])


def load(model: Path, limits: Limits) -> OpenVinoGenaiContender:
    """Load with room for every sequence and for one prompt in one step, which is its own default."""
    import openvino_genai

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.enable_prefix_caching = True
    scheduler.max_num_batched_tokens = limits.cache_tokens
    scheduler.max_num_seqs = limits.sequences
    scheduler.num_kv_blocks = 2 * -(-limits.cache_tokens // BLOCK)
    properties = {"INFERENCE_NUM_THREADS": limits.threads}
    return OpenVinoGenaiContender(
        openvino_genai.ContinuousBatchingPipeline(str(model), scheduler, "CPU", properties)
    )


class OpenVinoGenaiContender:
    """Steps the pipeline itself, so that every token's arrival is known."""

    def __init__(self, pipeline: ContinuousBatchingPipeline) -> None:
        self._pipeline = pipeline
        self._requests = count()

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> Generation:
        """See `Contender.generate`."""
        import numpy as np
        import openvino
        from openvino_genai import GenerationConfig

        config = GenerationConfig(max_new_tokens=new_tokens, ignore_eos=True, do_sample=False)
        started = time.perf_counter()
        handles = [
            self._pipeline.add_request(
                next(self._requests), openvino.Tensor(np.array([prompt], dtype=np.int64)), config
            )
            for prompt in prompts
        ]
        tokens: list[list[int]] = [[] for _ in prompts]
        arrivals: list[list[float]] = [[] for _ in prompts]
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            clock = time.perf_counter()
            for index, handle in enumerate(handles):
                while handle.can_read():
                    for output in handle.read().values():
                        tokens[index] += output.generated_ids
                        arrivals[index] += [clock] * len(output.generated_ids)
        return Generation(started, tokens, arrivals)

"""An engine that has room for few rows of logits is asked for no more, and answers as any other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kvfold.runtime.engine.protocol import EngineInfo, StepInputs
from kvfold.runtime.loop.read_logits import read_logits
from kvfold.runtime.sampling.params import SamplingParams
from tests.runtime.harness import PLANS, check, make_llm, make_prompts
from tests.runtime.synthetic_engine import SyntheticEngine

SEQUENCES = 4


class NarrowEngine(SyntheticEngine):
    """Few rows of logits a step."""

    most = SEQUENCES
    largest = 0

    @property
    def info(self) -> EngineInfo:
        return replace(super().info, max_logits=self.most)

    def execute(self, step: StepInputs) -> np.ndarray:
        assert len(step.logits_indices) <= self.most
        self.largest = max(self.largest, len(step.logits_indices))
        return super().execute(step)


class LessNarrowEngine(NarrowEngine):
    """A few more than sequences."""

    most = SEQUENCES + 7


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("pages", [20, 64])
@pytest.mark.parametrize("kind", [NarrowEngine, LessNarrowEngine])
def test_prompts_are_told_of_in_smaller_chunks(name: str, pages: int, kind: type[NarrowEngine]) -> None:
    told, prompts = [], make_prompts()
    scored = SamplingParams(max_tokens=9, temperature=0.8, seed=5, logprobs=1, prompt_logprobs=2)
    params = [scored if at % 2 else replace(scored, prompt_logprobs=None) for at in range(len(prompts))]
    for each in (SyntheticEngine, kind):
        llm, engine = make_llm(PLANS[name], pages, batched=48, seqs=SEQUENCES, kind=each)
        replies = llm.generate(prompts, params)
        told.append([(reply.token_ids, reply.logprobs, reply.prompt_logprobs) for reply in replies])
        check(llm)
    assert told[0] == told[1]
    assert isinstance(engine, kind) and engine.largest == kind.most


def test_others_go_on_beside_a_prompt_that_wants_every_row() -> None:
    llm, engine = make_llm(PLANS["global"], batched=48, seqs=SEQUENCES, kind=LessNarrowEngine)
    stream = llm.stream([1, 2, 3], SamplingParams(max_tokens=40))
    next(stream)
    first = engine.steps
    llm.generate([[5] * 100], SamplingParams(max_tokens=0, prompt_logprobs=0))
    assert engine.steps - first >= 100 // LessNarrowEngine.most
    assert len(list(stream)) > 0
    check(llm)


def test_a_text_s_logits_are_the_same() -> None:
    text = np.arange(90) % 50
    read = []
    for kind in (SyntheticEngine, NarrowEngine):
        llm, _ = make_llm(PLANS["hybrid"], batched=48, seqs=SEQUENCES, kind=kind)
        read.append(np.concatenate([rows for _, rows in read_logits(llm.generator.loop, text)]))
    wide, narrow = read
    np.testing.assert_array_equal(wide, narrow)

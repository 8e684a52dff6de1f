"""An engine that has room for few rows of logits is asked for no more, and answers as any other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kvfold.plugins.contract.errors import TargetError
from kvfold.runtime.engine.protocol import EngineInfo, StepInputs
from kvfold.runtime.loop.read_logits import read_logits
from kvfold.runtime.sampling.params import SamplingParams
from kvfold.runtime.scheduler.request import Prompt, Request
from tests.runtime.harness import PLANS, check, make_llm, make_prompts
from tests.runtime.synthetic_engine import SyntheticEngine

SEQUENCES = 4


class NarrowEngine(SyntheticEngine):
    """Few rows of logits a step."""

    most = SEQUENCES
    largest = 0

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.sequences: list[int] = []

    @property
    def info(self) -> EngineInfo:
        return replace(super().info, max_logits=self.most)

    def execute(self, step: StepInputs) -> np.ndarray:
        assert len(step.logits_indices) <= self.most
        self.largest = max(self.largest, len(step.logits_indices))
        self.sequences.append(len(step.past_seqlens))
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
    told = len(next(stream).token_ids)
    assert isinstance(engine, LessNarrowEngine)
    first = engine.steps
    llm.generate([[5] * 100], SamplingParams(max_tokens=0, prompt_logprobs=0))
    beside = engine.sequences[first:]
    assert len(beside) >= 100 // LessNarrowEngine.most
    assert beside == [2] * len(beside), "the stream advances in each step of the prompt"
    assert told + sum(len(chunk.token_ids) for chunk in stream) == 40
    check(llm)


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [(NarrowEngine, [1, 5, 5, 5]), (LessNarrowEngine, [8, 5, 5, 5]), (SyntheticEngine, [45, 3])],
)
@pytest.mark.parametrize("waited", [False, True])
def test_who_waits_enters_beside_a_prompt_that_wants_every_row(
    kind: type[SyntheticEngine], sizes: list[int], waited: bool
) -> None:
    """At once or while it runs, up to as many as may run; without a limit there is a row for each token."""
    llm, engine = make_llm(PLANS["global"], batched=48, seqs=SEQUENCES, kind=kind)
    scheduler = llm.generator.loop.core.scheduler
    scored = Request(Prompt(np.full(200, 5), logits_from=0), 0, engine.info)
    scheduler.submit(scored)
    if not waited:
        [(_, alone)] = scheduler.schedule()
        assert len(alone.wanted) == getattr(kind, "most", 48)
        scheduler.commit(scored, alone)
    short = [Request(Prompt(np.full(5, 7 + at)), 0, engine.info) for at in range(SEQUENCES)]
    for request in short:
        scheduler.submit(request)
    step = scheduler.schedule()
    assert [request for request, _ in step] == [scored, *short][: len(sizes)]
    assert [chunk.end - chunk.start for _, chunk in step] == sizes


def test_a_short_prompt_ends_in_the_first_step_beside_a_long_scored_one() -> None:
    llm, engine = make_llm(PLANS["global"], batched=48, seqs=SEQUENCES, kind=LessNarrowEngine)
    assert isinstance(engine, LessNarrowEngine)
    scored = SamplingParams(max_tokens=0, prompt_logprobs=0)
    llm.generate([[5] * 200, [7] * 5], [scored, SamplingParams(max_tokens=3)])
    assert engine.sequences == [2] * 3 + [1] * 16, "3 steps of 10 rows and one, then 11 each"


def test_fewer_rows_than_sequences_are_refused() -> None:
    with pytest.raises(TargetError, match="has 4 rows of logits, fewer than max_num_seqs 5; lower that"):
        make_llm(PLANS["global"], batched=48, seqs=SEQUENCES + 1, kind=NarrowEngine)


def test_a_text_s_logits_are_the_same() -> None:
    text = np.arange(90) % 50
    read = []
    for kind in (SyntheticEngine, NarrowEngine):
        llm, _ = make_llm(PLANS["hybrid"], batched=48, seqs=SEQUENCES, kind=kind)
        read.append(np.concatenate([rows for _, rows in read_logits(llm.generator.loop, text)]))
    wide, narrow = read
    np.testing.assert_array_equal(wide, narrow)

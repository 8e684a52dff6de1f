"""A reply that began on one engine and goes on on another is that of one that was never disturbed."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvfold.plugins.contract.errors import RequestError
from kvfold.runtime.llm.generation import Completion
from kvfold.runtime.llm.llm import LLM
from kvfold.runtime.loop.ticket import Said
from kvfold.runtime.sampling.params import SamplingParams
from kvfold.runtime.scheduler.request import Prompt
from tests.runtime.harness import PLANS, check, make_llm

PROMPT = Prompt(np.arange(40))


def reply(llm: LLM, params: SamplingParams, said: Said = ()) -> Completion:
    (completion,) = llm.generator.run([llm.generator.prepare(PROMPT, params, said=said)])
    return completion


@given(
    plan=st.sampled_from(sorted(PLANS)),
    cuts=st.lists(st.integers(0, 23), max_size=3),
    temperature=st.sampled_from([0.0, 0.7, 1.5]),
    penalty=st.sampled_from([0.0, 1.0]),
)
@settings(deadline=None, max_examples=40)
def test_it_goes_on_with_the_same_tokens_and_texts(
    plan: str, cuts: list[int], temperature: float, penalty: float
) -> None:
    params = SamplingParams(
        temperature=temperature,
        top_p=0.95,
        seed=3,
        max_tokens=24,
        repetition_penalty=1.2,
        frequency_penalty=penalty,
        min_tokens=20,
        stop_token_ids=(7,),
    )
    whole = reply(make_llm(PLANS[plan])[0], params)
    borders = [0, *sorted(cut for cut in cuts if cut < len(whole.token_ids))]
    said = tuple(tuple(whole.token_ids[a:b]) for a, b in pairwise(borders))
    llm, _ = make_llm(PLANS[plan])
    begun = llm.generator.prepare(PROMPT, params, said=said)
    assert "".join(chunk.text for chunk in begun.told) == whole.text[: sum(len(c.text) for c in begun.told)]
    chunks = list(llm.generator.stream(begun))
    assert chunks[-1].completion is not None
    assert chunks[-1].completion.token_ids == whole.token_ids
    assert "".join(chunk.text for chunk in (*begun.told, *chunks)) == whole.text
    assert chunks[-1].completion.finish_reason == whole.finish_reason
    assert chunks[-1].completion.usage.completion_tokens == whole.usage.completion_tokens
    check(llm)


def test_a_stop_text_that_was_half_said_is_found() -> None:
    free = reply(make_llm(PLANS["hybrid"])[0], SamplingParams(max_tokens=30))
    stopped = SamplingParams(max_tokens=30, stop=(free.text[9:12],))
    whole = reply(make_llm(PLANS["hybrid"])[0], stopped)
    assert whole.finish_reason == "stop"
    for cut in range(1, len(whole.token_ids)):
        again = reply(make_llm(PLANS["hybrid"])[0], stopped, (tuple(whole.token_ids[:cut]),))
        assert (again.text, again.token_ids, again.stop_text) == (
            whole.text,
            whole.token_ids,
            whole.stop_text,
        )


def test_what_it_finds_of_its_own_reply_is_not_told_as_found_of_the_prompt() -> None:
    llm, _ = make_llm(PLANS["global"])
    params = SamplingParams(max_tokens=60)
    whole = reply(llm, params)
    again = reply(llm, params, (tuple(whole.token_ids[:50]),))
    assert again.token_ids == whole.token_ids
    assert again.usage.reused_tokens == again.usage.prompt_tokens


@pytest.mark.parametrize("said", [((999,),), ((-1,),), (tuple(range(30)),), ((5, 6, 7),)])
def test_what_is_no_beginning_of_a_reply_is_refused(said: Said) -> None:
    """Not of this vocabulary; more than the reply may have; its end token is among them."""
    llm, _ = make_llm(PLANS["global"])
    with pytest.raises(RequestError):
        llm.generator.prepare(PROMPT, SamplingParams(max_tokens=8, stop_token_ids=(6,)), said=said)

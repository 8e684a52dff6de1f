"""Why a prompt was not reused, of real requests."""

from __future__ import annotations

import numpy as np
import pytest

from kvfold.runtime.llm.llm import LLM
from kvfold.runtime.metrics import PrefixMatch
from kvfold.runtime.sampling.params import SamplingParams
from kvfold.runtime.server.ui.why import why
from tests.runtime.harness import PLANS, make_llm

PARAMS = SamplingParams(max_tokens=1)
BASE = np.random.default_rng(0).integers(0, 256, 200).tolist()


def explain(llm: LLM, prompt: list[int]) -> str:
    (completion,) = llm.generate([prompt], PARAMS)
    return why(len(prompt), completion.usage.match, 16)


@pytest.mark.parametrize(
    ("before", "prompt", "words"),
    [
        ([], BASE, "Its first 16 tokens are not in the tree"),
        ([], BASE[:16], "Its 16 tokens fill no page of 16 before the last token"),
        ([BASE], BASE, "All that can be shared was reused"),
        ([BASE], [*BASE[:20], *[7] * 60], "It left the tree at token 16"),
        ([BASE], BASE[:150], "144 tokens were known, but window pages of window32_sink4"),
    ],
)
def test_a_request_says_why(before: list[list[int]], prompt: list[int], words: str) -> None:
    llm, _ = make_llm(PLANS["hybrid"])
    for each in before:
        llm.generate([each], PARAMS)
    assert explain(llm, prompt).startswith(words)


def test_what_was_too_short_once_is_long_enough_the_next_time() -> None:
    llm, _ = make_llm(PLANS["hybrid"])
    llm.generate([BASE], PARAMS)
    assert "are gone: reuse ended at 16" in explain(llm, BASE[:150])
    assert explain(llm, BASE[:150]).startswith("All that can be shared was reused")


def test_a_turn_of_a_session_and_a_waiting_request_say_so() -> None:
    assert why(90, PrefixMatch(87, 87, resumed=True), 16).startswith("Its session's kept pages held 87")
    assert why(90, None, 16).startswith("It waits")

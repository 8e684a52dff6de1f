"""The parameters of a request that are refused."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import pytest

from kvfold.plugins.contract.errors import RequestError
from kvfold.runtime.sampling.params import MAX_LOGIT_BIASES, SamplingParams


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", 1e-9),
        ("temperature", 101),
        ("temperature", "hot"),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_p", 0),
        ("top_p", 1.1),
        ("min_p", -0.5),
        ("repetition_penalty", 0),
        ("repetition_penalty", 1000),
        ("frequency_penalty", 2.1),
        ("frequency_penalty", float("nan")),
        ("presence_penalty", -2.1),
        ("logit_bias", [1]),
        ("logit_bias", {-1: 0.0}),
        ("logit_bias", {"7": 1.0}),
        ("logit_bias", {7: 101}),
        ("logit_bias", dict.fromkeys(range(MAX_LOGIT_BIASES + 1), 0.0)),
        ("seed", -1),
        ("max_tokens", 0),
        ("max_tokens", True),
        ("min_tokens", -1),
        ("min_tokens", 257),
        ("stop", "END"),
        ("stop", ("",)),
        ("stop_token_ids", 7),
        ("stop_token_ids", (-7,)),
        ("logprobs", -1),
        ("prompt_logprobs", -1),
    ],
)
def test_a_bad_parameter_is_named_with_its_value(name: str, value: Any) -> None:
    with pytest.raises(RequestError, match=name):
        SamplingParams(**{name: value})


def test_a_prompt_may_be_scored_without_a_reply() -> None:
    assert SamplingParams(max_tokens=0, prompt_logprobs=0).max_tokens == 0


def test_biases_are_a_copy_and_params_travel() -> None:
    given = {7: 1.0}
    params = SamplingParams(logit_bias=given)
    given[8] = 2.0
    assert params.logit_bias == {7: 1.0}
    assert hash(params) == hash(SamplingParams(logit_bias={7: 1.0}))
    assert pickle.loads(pickle.dumps(params)) == params == replace(params)

"""The adapter for lm-evaluation-harness, over a stand-in of its interface: it is not installed for tests."""

from __future__ import annotations

import abc
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from kvfold.pipeline.quality.subjects import Subject
from kvfold.pipeline.studies.lm_eval.lm_eval_model import as_lm_eval_model, load_lm_eval_model
from kvfold.pipeline.studies.lm_eval.lm_eval_requests import Generate, LmEvalModel, sampling_params
from kvfold.plugins.contract.errors import RequestError, TargetError
from kvfold.runtime.sampling.params import SamplingParams
from kvfold.runtime.text.detokenize import Detokenizer
from kvfold.runtime.text.tokenizer import Tokenizer
from tests.pipeline.quality.oracle import CopyingSubject
from tests.pipeline.quality.torch_subject import TorchSubject
from tests.runtime.byte_tokenizer import VOCAB, ByteTokenizer
from tests.tiny_model import tiny_config, tiny_decoder, tiny_plan

CONFIG = tiny_config(vocab_size=VOCAB)
TINY = TorchSubject("tiny", tiny_decoder(CONFIG, tiny_plan(CONFIG, "identity")))
END = 257


class LM(abc.ABC):
    """lm_eval.api.model.LM of lm-evaluation-harness 0.4: what an evaluation asks of a model."""

    def __init__(self) -> None:
        self._rank, self._world_size = 0, 1

    @abc.abstractmethod
    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]: ...

    @abc.abstractmethod
    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]: ...

    @abc.abstractmethod
    def generate_until(self, requests: Sequence[Any]) -> list[str]: ...

    def apply_chat_template(self, chat_history: Any, add_generation_prompt: bool = True) -> str:
        raise NotImplementedError

    @property
    def world_size(self) -> int:
        return self._world_size


@dataclass
class Instance:
    """lm_eval.api.instance.Instance: what an adapter reads of it."""

    args: tuple[Any, ...]


class BosTokenizer(ByteTokenizer):
    """A text starts with token 256, whose text is <|im_start|>."""

    def encode(self, text: str, *, control_tokens: bool = True) -> list[int]:
        return [256, *super().encode(text, control_tokens=control_tokens)]


def model(subject: Any = TINY, tokenizer: ByteTokenizer | None = None, context: int = 128) -> LmEvalModel:
    tokenizer = tokenizer or ByteTokenizer()
    return LmEvalModel(subject, generate_with(subject, tokenizer), tokenizer, context, "tiny")


def generate_with(subject: Subject, tokenizer: Tokenizer) -> Generate:
    """Greedy replies of a subject, each token by a pass over all before it."""

    def complete(prompt: Sequence[int], params: SamplingParams) -> str:
        ids, text = list(prompt), Detokenizer(tokenizer.decode, params.stop)
        for _ in range(params.max_tokens):
            (logits,) = subject.stream_logits(np.array(ids, np.int64), len(ids) - 1)
            ids.append(int(logits[0].argmax()))
            if ids[-1] in tokenizer.eos_token_ids or text.push(ids[-1]):
                break
        text.finish()
        return text.text

    def generate(prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]) -> list[str]:
        return [complete(prompt, each) for prompt, each in zip(prompts, params, strict=True)]

    return generate


def loglikelihood(ids: Sequence[int], answer: int) -> float:
    """Log probability of the tokens from `answer` on, straight from the logits."""
    logits = TINY.compute_logits(np.array(ids, np.int64)).astype(np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return float(sum(logprobs[position - 1, ids[position]] for position in range(answer, len(ids))))


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in under lm_eval's name."""
    modules = {name: ModuleType(name) for name in ("lm_eval", "lm_eval.api", "lm_eval.api.model")}
    modules["lm_eval.api.model"].LM = LM  # type: ignore[attr-defined]  # a module made by hand
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.usefixtures("installed")
def test_it_is_a_model_of_lm_eval() -> None:
    tokenizer = ByteTokenizer()
    lm = as_lm_eval_model(TINY, generate_with(TINY, tokenizer), tokenizer, 128, "bundles/tiny")
    assert isinstance(lm, LM)
    assert lm.world_size == 1
    assert isinstance(lm, LmEvalModel)
    assert lm.tokenizer_name == "bundles/tiny"
    (found,) = lm.loglikelihood([Instance(("the cat", " sat"))])
    assert found[0] == pytest.approx(loglikelihood(list(b"the cat sat"), 7), rel=1e-5)
    chat = lm.apply_chat_template([{"role": "user", "content": "hello"}])
    assert chat.endswith("<|im_start|>assistant\n")


def test_without_lm_eval_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # importing it fails, installed or not
    with pytest.raises(TargetError, match=r"pip install 'kvfold\[lm-eval\]'"):
        as_lm_eval_model(TINY, generate_with(TINY, ByteTokenizer()), ByteTokenizer(), 128, "tiny")


@pytest.mark.parametrize("context", ["we go ", "we go"])
def test_spaces_at_the_border_belong_to_the_continuation(context: str) -> None:
    continuation = "home" if context.endswith(" ") else " home"
    (found,) = model().loglikelihood([Instance((context, continuation))])
    assert found[0] == pytest.approx(loglikelihood(list(b"we go home"), 5), rel=1e-5)


def test_an_empty_context_is_the_token_that_begins_or_ends_a_text() -> None:
    (found,) = model().loglikelihood([Instance(("", "word"))])
    assert found[0] == pytest.approx(loglikelihood([END, *b"word"], 1), rel=1e-5)
    (found,) = model(tokenizer=BosTokenizer()).loglikelihood([Instance(("", "word"))])
    assert found[0] == pytest.approx(loglikelihood([256, *b"word"], 1), rel=1e-5)


def test_a_rendered_chat_has_one_bos_token() -> None:
    (found,) = model(tokenizer=BosTokenizer()).loglikelihood([Instance(("<|im_start|>user", " hi"))])
    assert found[0] == pytest.approx(loglikelihood([256, *b"user hi"], 5), rel=1e-5)


def test_long_contexts_lose_their_beginning() -> None:
    (found,) = model(context=8).loglikelihood([Instance(("x" * 50 + "abcde", "fgh"))])
    assert found[0] == pytest.approx(loglikelihood(list(b"xabcdefgh"), 6), rel=1e-5)


def test_greedy_continuations_are_known() -> None:
    oracle = model(CopyingSubject("oracle", VOCAB))
    right, wrong = Instance(("a zebra, a z", "ebra")), Instance(("a zebra, a z", "ebro"))
    assert [greedy for _, greedy in oracle.loglikelihood([right, wrong])] == [True, False]


def test_rolling_windows_predict_each_token_once() -> None:
    """lm_eval's own example: ten tokens, a context of four; the last window scores two."""
    text = "0123456789"
    ids = [END, *text.encode()]
    expected = loglikelihood(ids[:5], 1) + loglikelihood(ids[4:9], 1) + loglikelihood(ids[6:], 3)
    assert model(context=4).loglikelihood_rolling([Instance((text,))]) == [pytest.approx(expected, rel=1e-5)]
    whole = model().loglikelihood_rolling([Instance((text,))])
    assert whole == [pytest.approx(loglikelihood(ids, 1), rel=1e-5)]


def test_replies_end_at_a_stop_text_or_their_length() -> None:
    oracle = model(CopyingSubject("oracle", VOCAB))
    text = "one two three four. one"
    stopped = Instance((text, {"until": ["four", "\n"], "max_gen_toks": 40}))
    short = Instance((text, {"until": ".", "max_gen_toks": 4, "do_sample": False, "temperature": 1.0}))
    assert oracle.generate_until([stopped, short]) == [" two three ", " two"]


def test_a_long_reply_leaves_the_prompt_half_of_the_context() -> None:
    seen: list[tuple[int, int]] = []

    def generate(prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]) -> list[str]:
        seen.extend((len(prompt), each.max_tokens) for prompt, each in zip(prompts, params, strict=True))
        return [""] * len(prompts)

    lm = LmEvalModel(TINY, generate, ByteTokenizer(), 128, "tiny")
    lengths = ((100, 20), (100, 40), (200, 40), (100, 9999), (10, 9999))
    lm.generate_until([Instance(("x" * prompt, {"max_gen_toks": asked})) for prompt, asked in lengths])
    assert seen == [(100, 20), (88, 40), (88, 40), (64, 64), (10, 118)]


def test_generation_options() -> None:
    assert sampling_params({}) == SamplingParams(max_tokens=256)
    assert sampling_params({"until": None, "max_gen_toks": 7, "temperature": 0.5}).temperature == 0
    sampled = sampling_params({"do_sample": True, "temperature": 0.5, "top_p": 0.9, "top_k": 4})
    assert (sampled.temperature, sampled.top_p, sampled.top_k, sampled.max_tokens) == (0.5, 0.9, 4, 256)
    with pytest.raises(RequestError, match="temperature"):
        sampling_params({"do_sample": True, "temperature": -1.0})


@pytest.mark.usefixtures("installed")
def test_a_bundle_is_scored_and_writes(small_bundle: Path) -> None:
    """By both halves of its engine: scores come from the subject, replies from the LLM."""
    lm = load_lm_eval_model(small_bundle)
    context = "a cab and a tab and a"
    (reply,) = lm.generate_until([Instance((context, {"until": [], "max_gen_toks": 3}))])
    said = reply.replace(" ", "")  # the tiny tokenizer has no decoder: its tokens are joined by spaces
    greedy, other = lm.loglikelihood([Instance((context, said)), Instance((context, "zzz"))])
    assert greedy[1]
    assert not other[1]
    assert other[0] < greedy[0] < 0
    assert lm.loglikelihood_rolling([Instance((context * 20,))])[0] < 0

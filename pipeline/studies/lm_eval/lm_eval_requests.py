"""LmEvalModel: lm-evaluation-harness's three kinds of requests, answered by a subject and a generator.

Nothing of lm_eval is imported here; `lm_eval_model` adds its base class. Contract:
lm_eval/api/model.py of lm-evaluation-harness 0.4. Texts are encoded as its own models do,
so a control token that one spells is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from kvfold.export.search.question import Question, make_question
from kvfold.pipeline.quality.evaluate.answers import score_answer
from kvfold.pipeline.quality.likelihood import stream_losses
from kvfold.pipeline.quality.subjects import Subject
from kvfold.plugins.contract.template_text import by_template
from kvfold.runtime.sampling.params import SamplingParams
from kvfold.runtime.text.tokenizer import Tokenizer

# Token ids of prompts and how each is sampled, to the replies' texts.
Generate = Callable[[Sequence[Sequence[int]], Sequence[SamplingParams]], list[str]]
MAX_TOKENS = 256  # of a reply whose task does not say; lm_eval's own default


class Instance(Protocol):
    """A request: `args` holds a context and a continuation, a text, or a context and options."""

    @property
    def args(self) -> tuple[Any, ...]:
        """By kind of request."""
        ...


class LmEvalModel:
    """What lm-evaluation-harness asks of a model.

    Args:
        subject: scores texts.
        generate: writes them.
        tokenizer: of the model.
        context: tokens that the model can read; longer contexts lose their beginning.
        name: of the model, under which it caches requests.
    """

    def __init__(
        self, subject: Subject, generate: Generate, tokenizer: Tokenizer, context: int, name: str
    ) -> None:
        super().__init__()  # lm_eval's own base, where there is one
        self._subject = subject
        self._generate = generate
        self._tokenizer = tokenizer
        self._context = context
        self._name = name
        # What a text starts with: the model's BOS token, or for an empty context one that ends a text.
        self._start = tokenizer.encode("")
        self._prefix = self._start or list(tokenizer.eos_token_ids[:1])

    def loglikelihood(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Log probability of each continuation, and whether greedy decoding would give it."""
        found = []
        for context, continuation in (request.args for request in requests):
            answered = score_answer(self._subject, self._clip(self._make_question(context, continuation)))
            found.append((-answered.nll, answered.is_greedy))
        return found

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log probability of whole texts; each token once, with as much of the context as its window has."""
        return [self._score_text(request.args[0]) for request in requests]

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Replies up to a stop text, all requests at once.

        Where prompt and reply do not both fit, the prompt loses its beginning, down to half the context; then
        the reply ends where the context does.
        """
        prompts, params = [], []
        for context, options in (request.args for request in requests):
            asked = sampling_params(options)
            kept = max(self._context - asked.max_tokens, self._context // 2)
            prompts.append(self._encode(context)[-kept:])
            room = self._context - len(prompts[-1])
            params.append(replace(asked, max_tokens=min(asked.max_tokens, room)))
        return self._generate(prompts, params)

    def apply_chat_template(
        self, chat_history: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation as text; raises RequestError where the model has no template."""
        return self._tokenizer.render(chat_history, add_generation_prompt=add_generation_prompt)

    @property
    def tokenizer_name(self) -> str:
        """For the keys of lm_eval's request cache."""
        return self._name

    def _encode(self, text: str) -> list[int]:
        """Tokens of a text, which may be a rendered chat that already starts with its BOS token."""
        ids = self._tokenizer.encode(text)
        return (
            ids[len(self._start) :] if self._start and ids[: 2 * len(self._start)] == 2 * self._start else ids
        )

    def _make_question(self, context: str, continuation: str) -> Question:
        """Spaces at the context's end belong to the continuation, as tokens have them in front."""
        stripped = context.rstrip()
        if not stripped:
            ids = self._tokenizer.encode_rendered(by_template(context + continuation))
            return Question(np.array([*self._prefix, *ids], np.int64), len(self._prefix))
        return make_question(self._encode, stripped, context[len(stripped) :] + continuation)

    def _clip(self, question: Question) -> Question:
        """The last tokens that fit; the answer's last one is predicted and never read."""
        excess = max(0, len(question.token_ids) - 1 - self._context)
        return Question(question.token_ids[excess:], max(1, question.answer - excess))

    def _score_text(self, text: str) -> float:
        ids = np.array([*self._prefix, *self._tokenizer.encode_rendered(by_template(text))], np.int64)
        total = 0.0
        for start in range(len(self._prefix), len(ids), self._context):
            end = min(start + self._context, len(ids))
            begin = max(0, end - 1 - self._context)
            total -= float(stream_losses(self._subject, ids[begin:end], start - begin - 1).sum())
        return total


def sampling_params(options: Mapping[str, Any]) -> SamplingParams:
    """lm_eval's generation options: greedy unless `do_sample` is set."""
    until = options.get("until") or ()
    stop = (until,) if isinstance(until, str) else tuple(text for text in until if text)
    sampled = bool(options.get("do_sample", False))
    return SamplingParams(
        temperature=float(options.get("temperature", 1.0)) if sampled else 0.0,
        top_k=int(options.get("top_k", 0)) if sampled else 0,
        top_p=float(options.get("top_p", 1.0)) if sampled else 1.0,
        max_tokens=int(options.get("max_gen_toks", MAX_TOKENS)),
        stop=stop,
    )

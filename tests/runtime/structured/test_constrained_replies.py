"""Replies of an engine under grammars: each valid, beside others without, and one that fails fails alone."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from kvfold.plugins.contract.errors import RequestError
from kvfold.plugins.contract.tokenizer_config import TokenizerConfig
from kvfold.runtime.llm.generation import Reply
from kvfold.runtime.llm.llm import LLM
from kvfold.runtime.loop.ticket import Service
from kvfold.runtime.runtime_config import RuntimeConfig
from kvfold.runtime.sampling.params import SamplingParams
from kvfold.runtime.scheduler.request import Prompt
from kvfold.runtime.structured.call_formats import CALL_FORMATS, CallFormat
from kvfold.runtime.structured.grammar_spec import GrammarSpec, JsonSchema, Regex, ToolCalls
from kvfold.runtime.structured.reply_events import join_events
from kvfold.runtime.structured.reply_parser import ReplyParser, kept_tokens
from kvfold.runtime.structured.tools import Tool
from kvfold.runtime.text.tokenizer import BundleTokenizer
from tests.runtime.harness import PLANS, check
from tests.runtime.structured.json_schemas import PERSON
from tests.runtime.structured.random_walks import EOS, closing_tokens, tiny_bpe, tiny_compiler, vocab_size
from tests.runtime.synthetic_engine import SyntheticEngine

PROMPTS = [list(range(20, 20 + length)) for length in (3, 30, 17, 40)]


def make_constrained() -> LLM:
    """An LLM over a synthetic engine, whose tokens are those of the grammars."""
    engine = SyntheticEngine(PLANS["hybrid"], 400, vocab=vocab_size(), context=2_000)
    tokenizer = BundleTokenizer(tiny_bpe(), TokenizerConfig(eos_token_ids=(EOS,)))
    return LLM(engine, tokenizer, RuntimeConfig(max_num_batched_tokens=64, max_num_seqs=8))


def reply(
    llm: LLM,
    seed: int,
    spec: GrammarSpec | None = None,
    kept: frozenset[int] = frozenset(),
    tokens: int = 900,
) -> Reply:
    """A reply that was not submitted yet, drawn at random, where what closes something is likelier."""
    constraint = None if spec is None else tiny_compiler().compile(spec).constraint
    ends = dict.fromkeys(closing_tokens(), 12.0)
    params = SamplingParams(max_tokens=tokens, temperature=1, seed=seed, logit_bias=ends)
    prompt = Prompt(np.array(PROMPTS[seed % len(PROMPTS)]))
    return llm.generator.prepare(prompt, params, Service(constraint=constraint, kept_tokens=kept))


def test_replies_under_grammars_are_valid_beside_others() -> None:
    llm = make_constrained()
    specs = [JsonSchema(PERSON), None, Regex("[a-z]{3}(,[0-9]+){2}")]
    replies = [reply(llm, seed, specs[seed % 3], tokens=900 if specs[seed % 3] else 20) for seed in range(24)]
    completions = llm.generator.run(replies)
    for seed, completion in enumerate(completions):
        if seed % 3 == 0:
            Draft202012Validator(PERSON).validate(json.loads(completion.text))
        elif seed % 3 == 2:
            assert re.fullmatch("[a-z]{3}(,[0-9]+){2}", completion.text)
        assert seed % 3 == 1 or completion.finish_reason == "stop"
    alone = make_constrained()
    assert alone.generator.run([reply(alone, 3, specs[0])])[0].token_ids == completions[3].token_ids
    check(llm)


@pytest.mark.parametrize("form", CALL_FORMATS, ids=lambda form: form.name)
def test_calls_are_read_from_the_text_of_a_reply(form: CallFormat) -> None:
    """Where marks are special tokens too: their text stays."""
    llm = make_constrained()
    kept = kept_tokens(llm.generator.tokenizer.added_tokens, None, form)
    spec = ToolCalls((Tool("add", parameters=PERSON),), "required", parallel=False, format=form)
    for completion in llm.generator.run([reply(llm, seed, spec, kept) for seed in range(4)]):
        parser = ReplyParser(None, form)
        (call,) = join_events([*parser.push(completion.text), *parser.finish()]).calls
        Draft202012Validator(PERSON).validate(json.loads(call.arguments))


def test_a_grammar_that_fails_ends_its_reply_alone() -> None:
    llm = make_constrained()
    a = tiny_bpe().token_to_id("a")
    bomb = tiny_compiler().compile(Regex("(.*a.{200}){5}b")).constraint
    only_a = SamplingParams(max_tokens=1_500, logit_bias={a: 100.0})
    failing = llm.generator.prepare(Prompt(np.array(PROMPTS[0])), only_a, Service(constraint=bomb))
    other = reply(llm, 0, JsonSchema(PERSON))
    stream = llm.generator.stream(other)
    with pytest.raises(RequestError, match="make the grammar simpler"):
        llm.generator.run([failing])
    *_, last = stream
    assert last.completion is not None
    Draft202012Validator(PERSON).validate(json.loads(last.completion.text))
    check(llm)

"""Conversations: the next turn pays for its new tokens, and every fallback is counted."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from kvfold import LLM, RuntimeConfig, SamplingParams, Session
from kvfold.plugins.contract.chat_template import Message
from kvfold.plugins.contract.errors import RequestError
from kvfold.plugins.contract.template_text import TemplateText
from tests.runtime.byte_tokenizer import VOCAB, ByteTokenizer
from tests.runtime.harness import PLANS, check, in_use, make_llm
from tests.runtime.synthetic_engine import SyntheticEngine, expected_tokens

SHORT = SamplingParams(max_tokens=13)
# What a turn adds beyond the user's own text: the last reply token (sampled, never computed), the
# end of the reply, and the template around the next message.
FRAME = len("\n") + len("user\n") + len("\nassistant\n") + 4 + 1


@pytest.mark.parametrize("name", PLANS)
def test_a_later_turn_computes_its_new_tokens_only(name: str) -> None:
    llm, _ = make_llm(PLANS[name], context=2000, pages=128)
    with llm.session("Be brief.") as session:
        first = session.send("How are you? " * 40, SHORT)
        assert first.usage.reused_tokens == 0
        for text in ("And you?", "Why?"):
            known = session._conversation.known.token_ids
            completion = session.send(text, SHORT)
            assert completion.usage.prefilled_tokens == len(text) + FRAME
            assert completion.usage.reused_tokens == len(known) - 1
            prompt = session._conversation.known.token_ids[: -len(completion.token_ids)]
            assert prompt[: len(known)] == known
            assert completion.token_ids == expected_tokens(PLANS[name], prompt, 13, VOCAB)
        assert in_use(llm) > 0
    assert in_use(llm) == 0
    check(llm)
    assert llm.metrics.cache.resumed_turns == 2
    assert [message["role"] for message in session.messages] == ["system"] + ["user", "assistant"] * 2 + [
        "user",
        "assistant",
    ]


def test_streaming_a_turn_equals_sending_it() -> None:
    llm, _ = make_llm(PLANS["hybrid"])
    with llm.session() as sent, Session(llm.generator) as streamed:
        for text in ("One?", "Two?"):
            whole = sent.send(text, SHORT)
            chunks = list(streamed.stream(text, SHORT))
            assert "".join(chunk.text for chunk in chunks) == whole.text
    assert sent.messages == streamed.messages


def test_a_stop_text_makes_the_next_turn_look_in_the_tree() -> None:
    llm, _ = make_llm(PLANS["hybrid"])
    with llm.session() as session:
        tokens = session.send("Hello there, " * 4, SamplingParams(max_tokens=30)).token_ids
    stop = next(chr(token) for token in tokens[8:] if token < 128)
    with llm.session() as session:
        assert session.send("Hello there, " * 4, SamplingParams(stop=(stop,))).finish_reason == "stop"
        completion = session.send("Go on.", SHORT)
        assert completion.usage.reused_tokens > 0
        rendered = ByteTokenizer().render(session.messages[:-1], add_generation_prompt=True)
        assert session._conversation.known.text.startswith(rendered)
    assert llm.metrics.cache.rematched_turns == 1
    assert llm.metrics.cache.resumed_turns == 0


class TrimmingTokenizer(ByteTokenizer):
    """Rewrites earlier messages, as some templates do."""

    def render(
        self, messages: Sequence[Message], *, add_generation_prompt: bool, tools: object = ()
    ) -> TemplateText:
        cut = [{**message, "content": message["content"][:5]} for message in messages]
        return super().render(cut, add_generation_prompt=add_generation_prompt)


def test_a_template_that_rewrites_replies_is_followed() -> None:
    engine = SyntheticEngine(PLANS["hybrid"], vocab=VOCAB)
    llm = LLM(engine, TrimmingTokenizer(()), RuntimeConfig(max_num_batched_tokens=64))
    with llm.session("System") as session:
        session.send("First", SHORT)
        session.send("Second", SHORT)
        prompt = TrimmingTokenizer().render(session.messages[:-1], add_generation_prompt=True)
        assert session._conversation.known.text.startswith(prompt)
    assert llm.metrics.cache.rematched_turns == 1
    assert in_use(llm) == 0


def test_an_idle_session_gives_way_to_a_request_and_comes_back() -> None:
    llm, _ = make_llm(PLANS["global"], pages=12, context=400)
    with llm.session() as session:
        session.send("Hello. " * 10, SHORT)
        llm.generate([[7] * 170], SamplingParams(max_tokens=10))
        assert llm.metrics.cache.reclaimed_sessions == 1
        completion = session.send("Still there?", SHORT)
        prompt = session._conversation.known.token_ids[: -len(completion.token_ids)]
        assert completion.token_ids == expected_tokens(PLANS["global"], prompt, 13, VOCAB)
        check(llm)
    assert llm.metrics.cache.rematched_turns == 1
    assert in_use(llm) == 0


@pytest.mark.parametrize("pieces", [0, 1, 4])
def test_a_dropped_turn_is_undone(pieces: int) -> None:
    llm, _ = make_llm(PLANS["hybrid"])
    with llm.session() as session:
        session.send("One.", SHORT)
        before = session.messages
        turn = session.stream("Two.", SHORT)
        for _ in range(pieces):
            next(turn)
        turn.close()
        assert session.messages == before
        check(llm)
        assert session.send("Three.", SHORT).finish_reason == "length"
    assert in_use(llm) == 0


def test_a_turn_that_another_stream_finished_still_delivers_or_gives_back() -> None:
    llm, _ = make_llm(PLANS["hybrid"])
    with llm.session() as session:
        turn = session.stream("One.", SamplingParams(max_tokens=4))
        next(turn)
        llm.generate("x", SamplingParams(max_tokens=30))
        assert next(chunk for chunk in turn if chunk.completion is not None).completion is not None
        turn = session.stream("Two.", SamplingParams(max_tokens=4))
        next(turn)
        llm.generate("y", SamplingParams(max_tokens=30))
        turn.close()
        assert len(session.messages) == 2
    assert in_use(llm) == 0
    check(llm)


def test_misuse_is_refused() -> None:
    llm, _ = make_llm(PLANS["hybrid"], context=120)
    session = llm.session()
    first, second = session.stream("A?", SHORT), session.stream("B?", SHORT)
    next(first)
    with pytest.raises(RequestError, match="still streaming"):
        session.send("C?")
    list(first)
    with pytest.raises(RequestError, match="went on"):
        next(second)
    with pytest.raises(RequestError, match="the context 120"):
        session.send("long " * 40)
    session.close()
    session.close()
    with pytest.raises(RequestError, match="closed"):
        session.send("E?")
    assert in_use(llm) == 0

"""Turns that are stopped, taken back, answered again or given up: what follows is as if they never were."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from kvfold import LLM, Completion, RuntimeConfig, SamplingParams, Session, TextChunk
from kvfold.plugins.contract.errors import CapacityError, RequestError
from kvfold.runtime.memory.tiers.kv_tier import KvTier
from tests.runtime.byte_tokenizer import VOCAB, ByteTokenizer
from tests.runtime.harness import PLANS, check, in_use, make_llm
from tests.runtime.synthetic_engine import SyntheticEngine, expected_tokens

SHORT = SamplingParams(max_tokens=13)


class LatinTokenizer(ByteTokenizer):
    """Every byte is a character, so that any reply's text stands for its very tokens."""

    charset = "latin-1"


def make_chat(
    name: str, pages: int = 128, batched: int = 64, context: int = 1000, tier: KvTier | None = None
) -> LLM:
    """An LLM over a synthetic engine whose replies are text that encodes to their own tokens."""
    engine = SyntheticEngine(PLANS[name], pages, vocab=VOCAB, context=context)
    return LLM(engine, LatinTokenizer(()), RuntimeConfig(max_num_batched_tokens=batched), tier)


def ended(chunks: Iterable[TextChunk]) -> Completion:
    """The completion that a stream ends with."""
    (completion,) = (chunk.completion for chunk in chunks if chunk.completion is not None)
    return completion


def check_turn(session: Session, completion: Completion, name: str) -> None:
    """The reply is what the definition says after the conversation's tokens."""
    count = len(completion.token_ids)
    prompt = session._conversation.known.token_ids[:-count]
    assert completion.token_ids == expected_tokens(PLANS[name], prompt, count, VOCAB)


def contents(session: Session) -> list[Any]:
    return [message["content"] for message in session.messages]


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("pieces", [1, 2, 9])
def test_a_stopped_reply_is_the_turn_as_far_as_it_was_said(name: str, pieces: int) -> None:
    llm = make_chat(name)
    with llm.session("Be brief.") as session:
        session.send("How are you? " * 20, SHORT)
        turn = session.stream("Tell me more.", SamplingParams(max_tokens=200))
        said = "".join(next(turn).text for _ in range(pieces))
        session.stop()
        completion = ended(turn)
        assert completion.finish_reason == "cancelled"
        assert completion.text == said and len(completion.token_ids) < 60
        assert contents(session)[-2:] == ["Tell me more.", said]
        check_turn(session, completion, name)
        check(llm)
        known = session._conversation.known.token_ids
        later = session.send("And?", SHORT)
        assert session._conversation.known.token_ids[: len(known)] == known, (
            "the reply stays as its own tokens"
        )
        assert later.usage.reused_tokens == len(known) - 1
        check_turn(session, later, name)
    assert llm.metrics.cache.resumed_turns == 2
    assert in_use(llm) == 0
    check(llm)


def test_a_reply_stopped_before_its_first_token_undoes_the_turn() -> None:
    llm, engine = make_llm(PLANS["hybrid"], batched=16, context=1000)
    with llm.session() as session:
        session.send("One.", SHORT)
        before = session.messages
        turn = session.stream("Two. " * 40, SHORT)
        first_step = engine.steps
        engine.execute = stop_after(engine, session, first_step + 3)  # type: ignore[method-assign]
        completion = ended(turn)
        assert engine.steps == first_step + 3, "stopped while the prompt was still being read"
        assert (completion.text, completion.finish_reason) == ("", "cancelled")
        assert session.messages == before
        check(llm)
        check_turn(session, session.send("Two. " * 40, SHORT), "hybrid")
    assert in_use(llm) == 0


def stop_after(engine: SyntheticEngine, session: Session, steps: int) -> Any:
    """The engine's `execute`, which calls `stop` as a signal handler would: in the middle of a step."""
    execute = engine.execute

    def stopping(step: Any) -> Any:
        if engine.steps == steps - 1:
            session.stop()
        return execute(step)

    return stopping


def test_stopping_where_nothing_is_said_does_nothing() -> None:
    llm, _ = make_llm(PLANS["hybrid"])
    with llm.session() as session:
        session.stop()
        assert session.send("One.", SHORT).finish_reason == "length"
        session.stop()
        assert session.send("Two.", SHORT).finish_reason == "length"


@pytest.mark.parametrize("name", PLANS)
def test_an_undone_turn_leaves_no_trace(name: str) -> None:
    llm = make_chat(name)
    with llm.session("Be brief.") as session:
        session.send("How are you? " * 8, SHORT)  # no reply here holds a control token
        before, known = session.messages, session._conversation.known
        session.send("And you?", SHORT)
        assert session.undo() == {"role": "user", "content": "And you?"}
        assert (session.messages, session._conversation.known) == (before, known)
        later = session.send("Why?", SHORT)
        assert session._conversation.known.token_ids[: len(known.token_ids)] == known.token_ids
        assert later.usage.reused_tokens > 0
        check_turn(session, later, name)
        check(llm)
        session.undo()
        session.undo()
        assert contents(session) == ["Be brief."]
        with pytest.raises(RequestError, match="no turn yet"):
            session.undo()
        with pytest.raises(RequestError, match="no turn yet"):
            session.retry()
    assert in_use(llm) == 0


@pytest.mark.parametrize("name", PLANS)
def test_a_retry_takes_the_turn_s_place_once_it_ends(name: str) -> None:
    llm = make_chat(name)
    with llm.session() as session:
        session.send("How are you? " * 10, SHORT)
        first = session.send("And you?", SHORT)
        kept = session.messages
        turn = session.retry(SamplingParams(max_tokens=30, temperature=2.0, seed=3))
        next(turn)
        turn.close()
        assert session.messages == kept, "a retry that is dropped leaves the old reply"
        again = ended(session.retry(SamplingParams(max_tokens=20)))
        assert again.token_ids[:13] == first.token_ids and len(again.token_ids) == 20
        assert again.usage.prefilled_tokens <= 16, "the prompt comes from the cache"
        assert contents(session)[:3] == [message["content"] for message in kept[:3]]
        check_turn(session, again, name)
        check_turn(session, session.send("Why?", SHORT), name)
        check(llm)
    assert in_use(llm) == 0


def test_the_system_message_and_all_turns_can_change() -> None:
    llm, _ = make_llm(PLANS["hybrid"])
    with llm.session("Be brief.") as session:
        session.send("One.", SHORT)
        session.system = "Be long."
        assert session.system == "Be long."
        check_turn(session, session.send("Two.", SHORT), "hybrid")
        assert session._conversation.known.text.startswith(
            "<|im_start|>system\nBe long.<|im_end|>\n<|im_start|>user\nOne."
        )
        session.clear()
        assert contents(session) == ["Be long."] and session.num_tokens == 0
        check_turn(session, session.send("Three.", SHORT), "hybrid")
        session.system = None
        session.clear()
        assert session.messages == ()
    assert in_use(llm) == 0
    check(llm)


@pytest.mark.parametrize("change", ["another turn", "undo", "system"])
def test_a_turn_made_before_a_change_is_refused(change: str) -> None:
    """A kept sequence is the same object after the next turn: only a count of changes tells them apart."""
    llm, _ = make_llm(PLANS["hybrid"])
    with llm.session() as session:
        session.send("One.", SHORT)
        stale = session.stream("Stale.", SHORT)
        if change == "undo":
            session.undo()
        elif change == "system":
            session.system = "Be brief."
        else:
            session.send("Two.", SHORT)
        with pytest.raises(RequestError, match="went on"):
            next(stale)
        check_turn(session, session.send("Three.", SHORT), "hybrid")
    assert in_use(llm) == 0
    check(llm)


def test_a_full_context_is_an_error_unless_the_oldest_turns_may_go() -> None:
    llm, _ = make_llm(PLANS["hybrid"], context=300)
    with llm.session("Be brief.") as session, pytest.raises(RequestError, match="the context 300"):
        while True:
            session.send("And then? " * 3, SHORT)
    with pytest.raises(RequestError, match="on_overflow is 'forget'; use one of 'error', 'drop_oldest'"):
        llm.session(on_overflow="forget")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", PLANS)
def test_the_oldest_turns_make_room_and_the_system_message_stays(name: str) -> None:
    llm, _ = make_llm(PLANS[name], context=300)
    gone: list[Any] = []
    sent = [f"{number} and then? " + "more " * (number % 5) for number in range(30)]
    with llm.session("Be brief.", on_overflow="drop_oldest") as session:
        for text in sent:
            completion = session.send(text, SHORT)
            assert completion.finish_reason == "length" and len(completion.token_ids) == 13
            check_turn(session, completion, name)
            gone += [message["content"] for message in session.dropped if message["role"] == "user"]
            said = [message["content"] for message in session.messages if message["role"] == "user"]
            assert gone + said == sent[: len(gone) + len(said)], "oldest first, none lost, none twice"
            assert session.messages[0] == {"role": "system", "content": "Be brief."}
            if session.dropped:
                assert completion.usage.prompt_tokens <= 150, "so that the next turns come from the cache"
            check(llm)
    assert len(gone) > 10
    assert llm.metrics.cache.resumed_turns > len(sent) / 2
    assert in_use(llm) == 0


def test_a_message_that_is_too_long_by_itself_is_refused_and_nothing_is_given_up() -> None:
    llm, _ = make_llm(PLANS["hybrid"], context=300)
    with llm.session("Be brief.", on_overflow="drop_oldest") as session:
        session.send("One.", SHORT)
        before = session.messages
        with pytest.raises(RequestError, match="the context 300 with the reply; shorten"):
            session.send("long " * 80, SHORT)
        assert (session.messages, session.dropped) == (before, ())
        turn = session.stream("long " * 50, SHORT)
        next(turn)
        assert session.dropped == before[1:]
        turn.close()
        assert (session.messages, session.dropped) == (before, ()), "an undone turn gives nothing up"
        completion = session.send("long " * 50, SHORT)
        assert (session.dropped, len(session.messages)) == (before[1:], 3)
        check_turn(session, completion, "hybrid")
    assert in_use(llm) == 0


def test_a_pool_smaller_than_the_context_makes_room_too() -> None:
    llm, _ = make_llm(PLANS["global"], pages=12, context=2000)
    assert llm.generator.loop.core.scheduler.max_length == 12 * 16
    with llm.session(on_overflow="drop_oldest") as session:
        for _ in range(9):
            check_turn(session, session.send("And then? " * 3, SamplingParams(max_tokens=100)), "global")
        with pytest.raises(CapacityError, match="kv_cache_bytes is 3,072"):
            session.send("long " * 50)
        assert session.send("Still there?", SHORT).finish_reason == "length"
    assert in_use(llm) == 0

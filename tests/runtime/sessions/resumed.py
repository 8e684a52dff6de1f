"""What tests of resumed sessions share: LLMs over a synthetic engine, and how a session stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kvfold import LLM, SamplingParams, Session
from kvfold.plugins.contract.template_text import written_by_template
from kvfold.runtime.memory.tiers.kv_tier import KvTier
from tests.runtime.llm.test_session_turns import make_chat

NAME = "ada"
PLAN = "hybrid"
Standing = tuple[Any, ...]


def make_small(context: int = 300, tier: KvTier | None = None) -> LLM:
    """An LLM whose context is full after a few turns."""
    return make_chat(PLAN, context=context, tier=tier)


def open_session(llm: LLM, folder: Path, **given: Any) -> Session:
    """The session of that folder, as it was left."""
    return llm.session(on_overflow="drop_oldest", file=llm.store(folder).open(NAME), **given)


def standing(session: Session) -> Standing:
    """All that decides what comes next: messages, exact tokens, and who wrote which character."""
    known = session._conversation.known
    messages = tuple((message["role"], message["content"]) for message in session.messages)
    return messages, tuple(known.token_ids), str.__str__(known.text), written_by_template(known.text)


def tokens(count: int) -> SamplingParams:
    """So many tokens of a reply."""
    return SamplingParams(max_tokens=count)


def operate(session: Session, number: int, who: str = "") -> None:
    """One of many operations, the same for the same number and speaker: most are turns."""
    talked = any(message["role"] == "user" for message in session.messages)
    if number % 7 == 3 and talked:
        session.undo()
    elif number % 11 == 10:
        session.system = f"Be brief, {number}."
    elif number % 29 == 28:
        session.clear()
    else:
        session.send(f"{who}Message {number}. ", tokens(3 + number % 5))

"""Whatever is said or taken back, and whenever the process ends: a session goes on as if it had not."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from kvfold import LLM, Completion, SamplingParams, TextChunk
from kvfold.plugins.contract.errors import RequestError, SessionBusyError, SessionError
from kvfold.runtime.llm.async_llm import AsyncLLM
from tests.runtime.byte_tokenizer import ByteTokenizer
from tests.runtime.harness import check, in_use
from tests.runtime.llm.test_session_turns import LatinTokenizer
from tests.runtime.sessions.resumed import NAME, Standing, make_small, open_session, operate, standing, tokens

TEXTS = st.text(st.characters(codec="latin-1"), max_size=20) | st.sampled_from(
    ["<|im_end|>", "\n", "long " * 20]
)
COUNTS = st.integers(1, 9)


class ResumedSession(RuleBasedStateMachine):
    """A session in memory that lives on, and one that is ended in every way and opened again."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.folder = self.root / "0"
        self.moves = 0
        self.llm: LLM = make_small()
        self.history: list[tuple[int, Standing]] = []

    @initialize(system=st.none() | TEXTS)
    def begin(self, system: str | None) -> None:
        self.one = make_small().session(system, on_overflow="drop_oldest")
        self.other = open_session(self.llm, self.folder, system=system)
        self.other._conversation.save()
        self.same()

    def same(self) -> None:
        """After each operation: nothing tells the two apart; the file grew to what there is."""
        assert standing(self.one) == standing(self.other)
        assert self.other.unsaved is None
        size = self.path.stat().st_size
        if self.history and size < self.history[-1][0]:
            self.history.clear()  # it was written anew, as nothing of what was said may stay in it
        self.history.append((size, standing(self.other)))

    @property
    def path(self) -> Path:
        return self.llm.store(self.folder).path(NAME, "")

    @rule(text=TEXTS, count=COUNTS)
    def send(self, text: str, count: int) -> None:
        replies = [session.send(text, tokens(count)) for session in (self.one, self.other)]
        assert replies[0].token_ids == replies[1].token_ids and replies[0].text == replies[1].text
        assert self.one.dropped == self.other.dropped
        self.same()

    @rule(text=TEXTS, pieces=st.integers(0, 5))
    def stop(self, text: str, pieces: int) -> None:
        for session in (self.one, self.other):
            stream = session.stream(text, tokens(50))
            for _, _ in zip(range(pieces), stream, strict=False):
                pass
            session.stop()
            assert _ended(stream) is not None or pieces == 0
        self.same()

    @rule(text=TEXTS, pieces=st.integers(1, 5))
    def leave(self, text: str, pieces: int) -> None:
        for session in (self.one, self.other):
            stream = session.stream(text, tokens(50))
            for _, _ in zip(range(pieces), stream, strict=False):
                pass
            stream.close()
        self.same()

    @precondition(lambda self: len(self.one.messages) > 1)
    @rule(count=COUNTS)
    def retry(self, count: int) -> None:
        for session in (self.one, self.other):
            list(session.retry(SamplingParams(max_tokens=count, temperature=1.0, seed=count)))
        self.same()

    @precondition(lambda self: len(self.one.messages) > 1)
    @rule()
    def undo(self) -> None:
        assert self.one.undo() == self.other.undo()
        self.same()

    @rule()
    def clear(self) -> None:
        self.one.clear()
        self.other.clear()
        self.same()

    @rule(text=st.none() | TEXTS)
    def system(self, text: str | None) -> None:
        self.one.system = self.other.system = text
        self.same()

    @rule(anew=st.booleans())
    def close(self, anew: bool) -> None:
        self.other.close()
        if anew:
            self.llm = make_small()
        self.other = open_session(self.llm, self.folder)
        assert standing(self.one) == standing(self.other)

    @rule()
    def kill(self) -> None:
        """What a kill leaves is the file as it lies there, without a close."""
        self._move(self.path.read_bytes())
        assert standing(self.one) == standing(self.other)

    @rule(back=st.integers(1, 4000))
    def cut(self, back: int) -> None:
        """A file that lost its end is the session as it stood when it was so long; both go on from there."""
        data = self.path.read_bytes()
        left = max(self.history[0][0], len(data) - back)
        self._move(data[:left])
        expected = next(found for size, found in reversed(self.history) if size <= left)
        assert standing(self.other) == expected
        self.history = [(size, found) for size, found in self.history if size <= left]
        self.one.close()
        copy = self.root / f"{self.moves}-copy"
        shutil.copytree(self.folder, copy)
        self.one = open_session(make_small(), copy)

    def _move(self, data: bytes) -> None:
        """Go on in another process's place: a folder of its own, as this one holds the file."""
        self.other.close()
        self.moves += 1
        self.folder = self.root / str(self.moves)
        self.llm = make_small()
        self.path.parent.mkdir(parents=True, mode=0o700)
        self.path.write_bytes(data)
        self.other = open_session(self.llm, self.folder)

    def teardown(self) -> None:
        if hasattr(self, "other"):
            self.one.close()
            self.other.close()
            check(self.llm)
            assert in_use(self.llm) == 0
        shutil.rmtree(self.root)


def _ended(chunks: Any) -> Completion | None:
    rest: list[TextChunk] = list(chunks)
    return rest[-1].completion if rest else None


TestResumedSession = ResumedSession.TestCase
TestResumedSession.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)


def test_a_resumed_session_says_what_an_unkilled_one_does(tmp_path: Path) -> None:
    with make_small().session(on_overflow="drop_oldest") as unkilled:
        for number in range(80):
            operate(unkilled, number)
            with open_session(make_small(), tmp_path) as session:
                operate(session, number)
                assert standing(session) == standing(unkilled)


def test_a_cut_at_any_byte_is_an_earlier_standing_and_goes_on(tmp_path: Path) -> None:
    llm, sizes = make_small(), {0: ((), (), "", b"")}
    with open_session(llm, tmp_path) as session:
        path = llm.store(tmp_path).path(NAME, "")
        for number in range(6):
            operate(session, number)
            sizes[path.stat().st_size] = standing(session)
    whole = path.read_bytes()
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        with open_session(llm, tmp_path) as session:
            last = max(size for size in sizes if size <= cut)
            assert standing(session) == sizes[last]
            if cut % 97 == 0:
                session.send("And on.", tokens(3))
                after = standing(session)
                session.close()
                with open_session(llm, tmp_path) as again:
                    assert standing(again) == after


def test_a_flipped_bit_is_an_earlier_standing_or_an_error(tmp_path: Path) -> None:
    llm, standings = make_small(), [((), (), "", b"")]
    with open_session(llm, tmp_path) as session:
        for number in range(12):
            operate(session, number)
            standings.append(standing(session))
    path = llm.store(tmp_path).path(NAME, "")
    whole = path.read_bytes()
    for at in range(0, len(whole), 3):
        changed = bytearray(whole)
        changed[at] ^= 1 << at % 8
        path.write_bytes(changed)
        try:
            with open_session(llm, tmp_path) as session:
                assert standing(session) in standings[:-1]
        except SessionError as error:
            assert "version" in str(error)


def test_a_system_message_that_is_given_anew_takes_the_kept_one_s_place(tmp_path: Path) -> None:
    llm = make_small()
    with open_session(llm, tmp_path, system="One.") as session:
        session.send("Hi", tokens(3))
    for given, expected in ((None, "One."), ("Two.", "Two."), (None, "Two.")):
        with open_session(llm, tmp_path, system=given) as session:
            assert session.system == expected
            session.send("Hi", tokens(3))


def test_one_session_of_a_name_at_a_time_also_of_tasks(tmp_path: Path) -> None:
    async def work() -> None:
        async with AsyncLLM(make_small()) as llm:
            store = llm.llm.store(tmp_path)
            async with llm.session("Be brief.", file=store.open(NAME)) as session:
                await session.send("Hi", tokens(3))
                with pytest.raises(SessionBusyError):
                    store.open(NAME)
                assert session.unsaved is None
                messages = session.messages
            async with llm.session(file=store.open(NAME)) as session:
                assert session.messages == messages
                await session.send("And?", tokens(3))
        with open_session(make_small(), tmp_path) as resumed:
            assert len(resumed.messages) == 5

    asyncio.run(work())


def test_another_tokenizer_s_session_is_refused(tmp_path: Path) -> None:
    with open_session(make_small(), tmp_path) as session:
        session.send("Hi", tokens(3))
    other = make_small()
    other.generator.tokenizer = ByteTokenizer(())
    assert ByteTokenizer(()).fingerprint != LatinTokenizer(()).fingerprint
    with pytest.raises(SessionError, match="another model's tokens"):
        open_session(other, tmp_path)


def test_a_disk_that_fails_is_told_and_the_session_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    with open_session(make_small(), tmp_path) as session:
        session.send("One", tokens(3))
        with monkeypatch.context() as patch:
            patch.setattr("os.pwrite", full)
            session.send("Two", tokens(3))
            assert "No space left on device" in str(session.unsaved)
        session.send("Three", tokens(3))
        assert session.unsaved is None
        whole = standing(session)
    with open_session(make_small(), tmp_path) as session:
        assert standing(session) == whole


def test_a_closed_session_writes_nothing_more(tmp_path: Path) -> None:
    session = open_session(make_small(), tmp_path)
    stream = session.stream("Hi", tokens(3))
    next(stream)
    session.close()
    list(stream)
    assert list(tmp_path.rglob("*.session")) == []
    with pytest.raises(RequestError, match="closed"):
        session.send("Hi", tokens(3))

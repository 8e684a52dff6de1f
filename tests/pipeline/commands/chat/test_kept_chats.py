"""Chats that are kept: what `--resume`, `--session` and `--private` do, at a terminal and through pipes."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from kvfold import SamplingParams
from kvfold.pipeline.chat.kept_chats import KEPT_CHATS, Keeping
from kvfold.pipeline.cli import cli
from kvfold.plugins.contract.errors import RequestError, SessionBusyError, SessionError
from kvfold.runtime.sessions.session_file import SessionFile
from tests.pipeline.commands.chat.pseudo_terminal import CTRL_D, ENTER, PseudoTerminal
from tests.pipeline.commands.chat.test_run_command import CLI, COST, pipe
from tests.runtime.harness import PLANS, make_llm

CHATS = Path(".local/state/kvfold/chats")
PAGES = CHATS.parent / "kv"
SHORT = SamplingParams(max_tokens=3)
# Files written within one tick of the kernel's clock have the same age; no tick is longer.
TICK = 0.01


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's home of its own."""
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def opened(bundle: Path, *, by_hand: bool = True, **given: Any) -> tuple[SessionFile | None, str | None]:
    llm, _ = make_llm(PLANS["hybrid"])
    return Keeping(**given).open(llm, bundle, by_hand)


def talk(bundle: Path, text: str, **given: Any) -> tuple[list[object], str | None]:
    """Say something in a chat that is kept; all that was said in it, and its first line."""
    time.sleep(TICK)
    llm, _ = make_llm(PLANS["hybrid"])
    file, note = Keeping(**given).open(llm, bundle, True)
    with llm.session(on_overflow="drop_oldest", file=file) as session:
        session.send(text, SHORT)
        return [message["content"] for message in session.messages if message["role"] == "user"], note


def test_the_last_chat_of_the_bundle_goes_on(home: Path) -> None:
    one, other = home / "one", home / "other"
    assert talk(one, "a") == (["a"], "Kept for kvfold run --resume; --private keeps nothing.")
    talk(one, "b")
    talk(other, "c")
    said, note = talk(one, "d", resume=True)
    assert said == ["b", "d"]
    assert re.fullmatch(
        r'Going on with "\d{4}-\d\d-\d\d [\d:]+( \(\d\))?": 1 turn, the last on "b"\.', note or ""
    )
    assert talk(other, "e", resume=True)[0] == ["c", "e"]
    assert talk(other, "f")[0] == ["f"], "without it a new one begins"


def test_a_chat_may_have_a_name(home: Path) -> None:
    assert talk(home, "a", name="trip") == (["a"], 'This chat is kept as "trip".')
    talk(home, "b")
    said, note = talk(home, "c\nd " + "e" * 99, name="trip")
    assert said[0] == "a" and note == 'Going on with "trip": 1 turn, the last on "a".'
    assert talk(home, "f", resume=True)[1] == f'Going on with "trip": 2 turns, the last on "c d {"e" * 36}".'


def test_nothing_is_kept_of_a_private_chat_nor_of_what_is_piped_in(home: Path) -> None:
    assert opened(home, private=True) == (None, "Nothing of this chat is kept.")
    assert opened(home, by_hand=False) == (None, None)
    assert Keeping(private=True).pages(by_hand=True) == Keeping().pages(by_hand=False) == {}
    file, _ = opened(home)
    assert file is not None
    file.close()
    assert [path for path in home.rglob("*") if path.is_file()] == [], "nor of one without a word"


def test_a_chat_that_cannot_go_on_says_why(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match=r"no chat with .* is kept yet; leave --resume out"):
        opened(home, resume=True)
    with pytest.raises(RequestError, match="exclude each other"):
        Keeping(resume=True, private=True)
    talk(home, "a")
    file, _ = opened(home, resume=True)
    assert file is not None
    with pytest.raises(SessionBusyError):
        opened(home, resume=True)
    file.path.write_bytes(file.path.read_bytes()[:-5])
    file.close()
    file, note = opened(home, resume=True)
    assert file is not None and re.search(r"\d+ bytes at its end could not be read", note or "")
    file.close()
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "file"))
    (home / "file").touch()
    assert "This chat is not kept: " in str(opened(home)[1])
    with pytest.raises(SessionError, match="make it a folder of yours"):
        opened(home, name="trip")


def test_many_chats_push_out_the_oldest(home: Path) -> None:
    for count in range(KEPT_CHATS + 3):
        talk(home, "a", name=str(count))
    kept = list((home / CHATS).rglob("*.session"))
    assert len(kept) <= KEPT_CHATS + 1


def test_piped_lines_go_on_where_others_ended(environment: dict[str, str], small_bundle: Path) -> None:
    run = ("run", str(small_bundle), "--max-tokens", "4")
    assert pipe(environment, *run, said="a cab\n").returncode == 0
    refused = pipe(environment, *run, "--resume", said="a cab\n")
    assert refused.returncode == 2 and "leave --resume out to begin one" in refused.stderr
    first = pipe(environment, *run, "--session", "trip", said="a cab\n")
    second = pipe(environment, *run, "--resume", said="a tab\n")
    costs = [tuple(map(int, cost)) for result in (first, second) for cost in re.findall(COST, result.stdout)]
    assert second.returncode == 0 and costs[1][1] > costs[0][1], "the first turn is in the second's prompt"


def test_a_chat_that_goes_on_costs_its_new_tokens(
    environment: dict[str, str], small_bundle: Path, tmp_path: Path
) -> None:
    run = ("run", str(small_bundle), "--max-tokens", "4")
    said = "a cab, a tab, a cab, a tab, a cab, a tab, a cab, a tab\n"
    first = pipe(environment, *run, "--session", "trip", said=said)
    assert list((tmp_path / PAGES).glob("*/*.checkpoint")), "its pages lie beside it"
    second = pipe(environment, *run, "--resume", said="a tab\n")
    (_, prompt, _), (reused, again, _) = (
        tuple(map(int, cost)) for result in (first, second) for cost in re.findall(COST, result.stdout)
    )
    assert again > prompt > 32 and reused > prompt - 16
    before = set((tmp_path / PAGES).rglob("*"))
    assert pipe(environment, *run, said=said[::-1]).returncode == 0
    assert set((tmp_path / PAGES).rglob("*")) == before, "of what is not kept there are no pages either"
    (tmp_path / PAGES).chmod(0o777)
    assert pipe(environment, *run, "--resume", said="a tab\n").returncode == 0, "it goes on without pages"


def test_a_chat_at_a_terminal_goes_on(start: Callable[..., PseudoTerminal], small_bundle: Path) -> None:
    run = (CLI, "run", str(small_bundle), "--max-tokens", "4")
    for more, expected in (
        ((), "Kept for kvfold run --resume; --private keeps nothing."),
        (("--resume",), '1 turn, the last on "a cab".'),
        (("--private",), "Nothing of this chat is kept."),
        (("--resume",), '2 turns, the last on "a cab".'),
    ):
        chat = start(*run, *more)
        chat.wait_for_prompt()
        assert expected in chat.words
        if "--private" in more:
            chat.type("a secret" + ENTER)
            chat.wait_for_prompt()
        else:
            chat.type("a cab" + ENTER)
            chat.wait_for_prompt()
        chat.type(CTRL_D)
        assert chat.wait_for_end() == 0
    for path in chat.folder.rglob("*"):
        assert not path.is_file() or b"a secret" not in path.read_bytes()


def test_two_ways_to_keep_at_once_are_refused() -> None:
    result = CliRunner().invoke(cli, ["run", "--resume", "--private"])
    assert result.exit_code != 0 and "exclude each other" in str(result.exception or result.output)

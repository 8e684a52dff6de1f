"""A chat in a pseudo-terminal, keystroke by keystroke, with a model that says what a script says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.pipeline.commands.chat.pseudo_terminal import CTRL_C, CTRL_D, CTRL_J, ENTER, UP, PseudoTerminal

Scripted = Callable[..., PseudoTerminal]
HISTORY = Path(".local/state/kvfold/chat_history")


def say(terminal: PseudoTerminal, text: str, answer: str = "") -> None:
    """Type a message, wait for the next prompt, and look for the reply before it."""
    terminal.type(text + ENTER)
    terminal.wait_for_prompt()
    said = answer or f"You said: {text.strip()}"
    assert " ".join(said.split()) in terminal.words.rpartition(f"> {text.strip()}")[2], terminal.text


def leave(terminal: PseudoTerminal) -> None:
    """Ctrl-D ends the chat, without an error."""
    terminal.type(CTRL_D)
    assert terminal.wait_for_end() == 0


def test_ctrl_c_stops_a_reply_keeps_what_was_said_and_the_chat_goes_on(scripted: Scripted) -> None:
    chat = scripted()
    chat.type("count" + ENTER)
    chat.wait_for("17 18 19 20")
    chat.type(UP + "noise" + ENTER)  # keys that mean nothing during a reply
    chat.type(CTRL_C)
    chat.wait_for("Stopped. What was said stays as the turn; /undo takes it back.")
    chat.wait_for_prompt()
    assert "^[" not in chat.text and "^C" not in chat.text and "noise" not in chat.text
    counted = next(line for line in chat.lines if line.startswith("1 2 3"))
    say(chat, "hello")
    chat.type("/save said.jsonl" + ENTER)
    chat.wait_for("5 messages written")
    messages = json.loads((chat.folder / "said.jsonl").read_text())["messages"]
    assert messages[1] == {"role": "user", "content": "count"}
    assert " ".join(messages[2]["content"].split()).startswith(counted), "what was said is the turn"
    assert messages[3:] == [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "You said: hello"},
    ]
    leave(chat)


def test_ctrl_c_before_the_first_word_takes_the_message_back(scripted: Scripted) -> None:
    chat = scripted()
    say(chat, "first")
    chat.type("slow " * 300 + ENTER)
    chat.wait_for(lambda: (chat.folder / "reading").exists())
    chat.type(CTRL_C)
    chat.wait_for_prompt()
    assert "Stopped before a word was said; the conversation stays as it was." in chat.words
    (chat.folder / "reading").unlink()
    chat.type("/save said.jsonl" + ENTER)
    chat.wait_for("3 messages written")
    leave(chat)


def test_ctrl_c_at_the_prompt_says_how_to_leave_and_empties_a_line(scripted: Scripted) -> None:
    chat = scripted()
    chat.type(CTRL_C)
    chat.wait_for("Ctrl-D leaves the chat")
    chat.wait_for_prompt()
    chat.type("not this")
    chat.wait_for("> not this")
    chat.type(CTRL_C)
    chat.wait_for(lambda: chat.lines[-1] == ">")
    say(chat, "but this")
    assert "You said: not this" not in chat.text
    leave(chat)


def test_an_empty_line_does_nothing(scripted: Scripted) -> None:
    chat = scripted()
    for nothing in ("", "  "):
        chat.type(nothing + ENTER)
        chat.wait_for_prompt()
    say(chat, "hi")
    assert chat.text.count("You said") == 1
    leave(chat)


def test_a_text_of_several_lines_is_one_message(scripted: Scripted) -> None:
    chat = scripted()
    chat.paste("pasted one\r\npasted two\npasted three")
    chat.wait_for("pasted three")
    assert "You said" not in chat.text, "it waits for Enter"
    chat.type(ENTER)
    chat.wait_for("You said: pasted one\npasted two\npasted three")
    chat.wait_for_prompt()
    chat.type("typed one\x1b" + ENTER + "two" + CTRL_J + "three" + ENTER)
    chat.wait_for("You said: typed one\ntwo\nthree")
    chat.wait_for_prompt()
    leave(chat)


def test_a_line_can_be_edited_and_earlier_chats_come_back(scripted: Scripted, tmp_path: Path) -> None:
    chat = scripted()
    chat.type("wrld\x1b[D\x1b[D\x1b[Do\x01hello \x05!" + ENTER)  # left, home and end
    chat.wait_for("You said: hello world!")
    chat.wait_for_prompt()
    leave(chat)
    assert (tmp_path / HISTORY).stat().st_mode & 0o077 == 0, "what was said is nobody else's business"
    later = scripted()
    later.type(UP)
    later.wait_for("> hello world!")
    later.type(ENTER)
    later.wait_for("You said: hello world!")
    later.wait_for_prompt()
    leave(later)


def test_a_history_that_cannot_be_written_is_no_history(scripted: Scripted, tmp_path: Path) -> None:
    (tmp_path / ".local").write_text("a file, where the folder would be")
    chat = scripted()
    say(chat, "hi")
    chat.type(UP)
    chat.wait_for("\n> hi")
    chat.type(ENTER)
    chat.wait_for_prompt()
    assert chat.text.count("You said: hi") == 2
    leave(chat)


def test_commands(scripted: Scripted, tmp_path: Path) -> None:
    chat = scripted()
    say(chat, "/help", "Ctrl-D")
    assert all(name in chat.text for name in ("/system", "/undo", "/retry", "/clear", "/save FILE", "/stats"))
    say(chat, "/undo", "RequestError: the conversation has no turn yet")
    say(chat, "hello")
    say(chat, "/retry", "With a temperature of 0 the reply is the same again")
    assert chat.text.count("You said: hello") == 2
    say(chat, "/system Be short.", "The system message is set")
    say(chat, "/system", "Be short. >")
    chat.paste("/system Be\nbrief.")
    chat.type(ENTER)
    chat.wait_for_prompt()
    say(chat, "/system", "Be brief. >")
    say(chat, "/system Be short.", "The system message is set")
    say(chat, "bye")
    say(chat, "/undo", 'Taken back: "bye" and its reply.')
    say(chat, "/save chat.md", "3 messages written to chat.md")
    assert (tmp_path / "chat.md").read_text() == (
        "## system\n\nBe short.\n\n## user\n\nhello\n\n## assistant\n\nYou said: hello\n"
    )
    say(chat, "/save chat.md", "RequestError: chat.md is there already")
    say(chat, "/save no/chat.md", "RequestError: no/chat.md cannot be written (No such file or directory)")
    say(chat, "/save ~nobody-here/chat.md", "RequestError: ~nobody-here/chat.md cannot be written (")
    say(chat, "/save", "RequestError: /save needs a file")
    say(chat, "/clear", "All turns are taken back")
    say(chat, "/clear it", "RequestError: /clear takes nothing after it, and got 'it'")
    say(chat, "/explode", "RequestError: there is no command /explode; /help lists them")
    assert "You said: /" not in chat.text, "a wrong command is not sent"
    say(chat, " /etc/hosts")
    leave(chat)


def test_stats_count_the_cache_and_its_bytes(scripted: Scripted) -> None:
    chat = scripted()
    say(chat, "hello")
    say(chat, "again")
    costs = re.findall(r"(\d+) of (\d+) prompt tokens from the cache", chat.words)
    reused, prompts = (sum(map(int, column)) for column in zip(*costs, strict=True))
    assert len(costs) == 2 and 0 < reused < prompts
    say(chat, "/stats", "of these, from the cache")
    rows = (re.split(r"  +", line) for line in chat.lines if "  " in line)
    figures = dict(rows)
    assert figures["prompt tokens so far"] == str(prompts)
    assert figures["of these, from the cache"] == f"{reused} ({reused / prompts:.0%})"
    assert figures["context"].endswith("of 16,384 tokens")
    tokens = int(figures["context"].partition(" ")[0])
    assert figures["KV cache of this conversation"] == f"{-(-tokens // 16) * 16 * 16 / 1024:.3g} KiB"
    assert figures["the unfolded model's, in bf16"] == f"{tokens * 8} B"
    leave(chat)


def test_a_full_context_gives_up_the_oldest_turns_and_says_which(scripted: Scripted, tmp_path: Path) -> None:
    chat = scripted("1000")
    for number in range(4):
        say(chat, f"number {number} " + "x" * 60, f"You said: number {number}")
    say(chat, "number 4 " + "x" * 60, "The context is full, so these turns are given up:")
    assert 'given up: "number 0 xxx' in chat.words and "You said: number 4" in chat.text
    say(chat, "long " * 250, "RequestError: the prompt has")
    say(chat, "/save said.jsonl", "messages written")
    messages = json.loads((tmp_path / "said.jsonl").read_text())["messages"]
    assert messages[0] == {"role": "system", "content": "Be kind."}
    assert messages[-2]["content"].startswith("number 4")
    assert "number 0" not in json.dumps(messages)
    say(chat, "still here")
    leave(chat)


@pytest.mark.parametrize("columns", [40, 60, 80])
def test_a_reply_in_markdown_reads_as_text_at_any_width(scripted: Scripted, columns: int) -> None:
    chat = scripted(columns=columns)
    say(chat, "markdown", "prompt tokens from the cache")
    text, words = chat.text, chat.words
    assert "A KV cache keeps what attention needs of tokens that were read before, so that decode" in words
    assert "1 first things first, which is a list item that is long enough to wrap at sixty columns" in words
    assert "2 second, with <b>tags</b> in it" in words
    assert "\nSecond line of the paragraph." in text, "a line that the model ended ends"
    assert "\nCaches\n" in text and "**" not in text and "```" not in text and "|" not in text
    assert "\n def page(token):\n     return token // 16\n" in text
    assert "/help lists the commands, Ctrl-D leaves." in words
    leave(chat)


def test_a_reply_longer_than_the_screen_keeps_its_lines_in_order(scripted: Scripted) -> None:
    chat = scripted()
    say(chat, "lines", "paragraph 149")
    assert "paragraph 0" not in chat.lines, "it has left the screen"
    shown = [line for line in chat.lines if line.startswith("paragraph")]
    assert shown == [f"paragraph {number}" for number in range(150 - len(shown), 150)]
    leave(chat)


def test_a_reply_cannot_command_the_terminal(scripted: Scripted) -> None:
    chat = scripted()
    say(chat, "escape", "red [31malert[0m 2J over")
    assert b"\x1b[31malert" not in chat.raw and b"\x07" not in chat.raw
    leave(chat)


def test_a_terminal_that_changes_its_width_loses_no_word(scripted: Scripted) -> None:
    chat = scripted()
    chat.type("count" + ENTER)
    chat.wait_for("17 18 19 20")
    chat.resize(40)
    chat.wait_for("57 58 59 60")
    chat.type(CTRL_C)
    chat.wait_for("Stopped.")
    chat.wait_for_prompt()
    assert "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n17 18 19 20" in chat.text
    leave(chat)

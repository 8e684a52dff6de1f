"""Chat: asks, runs commands, shows replies, until the user leaves."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from rich.console import Console

from kvfold.pipeline.chat.chat_commands import COMMANDS, Conversation, run_command
from kvfold.pipeline.chat.keyboard import Keyboard, history_path, only_ctrl_c, quiet_terminal
from kvfold.pipeline.chat.show_reply import describe_dropped, show_reply
from kvfold.plugins.contract.errors import KvfoldError
from kvfold.runtime.llm.generation import Completion, TextChunk


def run_chat(conversation: Conversation) -> None:
    """Hold a conversation in the terminal; returns when the user leaves."""
    console = conversation.console
    console.print(conversation.model.describe(), style="dim", markup=False, highlight=False)
    if conversation.note is not None:
        console.print(conversation.note, style="dim", markup=False, highlight=False)
    console.print()
    keyboard = Keyboard(COMMANDS, None if conversation.private else history_path())
    with quiet_terminal(), suppress(EOFError):
        while True:
            try:
                _answer(conversation, keyboard.ask())
            except KeyboardInterrupt:
                _note(console, "Ctrl-D leaves the chat, /help lists the commands.")
            except KvfoldError as error:
                console.print(
                    f"{type(error).__name__}: {error}\n", style="red", markup=False, highlight=False
                )


def _answer(conversation: Conversation, text: str) -> None:
    """Do what the user wrote: a command, a message, or nothing where it is empty."""
    session, console = conversation.session, conversation.console
    chunks: Iterable[TextChunk] | None
    if text.startswith("/"):
        chunks = run_command(conversation, text.strip())
        if chunks is None:
            console.print()
            return
    elif message := text.strip():
        chunks = session.stream(message, conversation.params)
    else:
        return
    _note(console, describe_dropped(session.dropped))
    with only_ctrl_c(session.stop):
        completion = show_reply(chunks, console)
    conversation.usages.append(completion.usage)
    _note(console, _describe_end(completion, conversation.model.context_length))
    if session.unsaved is not None and conversation.unsaved is None:
        _note(console, f"This chat is not kept as it stands: {session.unsaved}.")
    conversation.unsaved = session.unsaved


def _describe_end(completion: Completion, context_length: int) -> str | None:
    """Why a reply ended, where the model did not end it."""
    if completion.finish_reason == "cancelled":
        if completion.text:
            return "Stopped. What was said stays as the turn; /undo takes it back."
        return (
            "Stopped before a word was said; the conversation stays as it was. The Up key brings the message."
        )
    if completion.finish_reason == "length":
        usage = completion.usage
        if usage.prompt_tokens + usage.completion_tokens >= context_length:
            return "The reply ended with the context."
        return f"The reply was cut after {usage.completion_tokens:,} tokens; --max-tokens allows more."
    return None


def _note(console: Console, text: str | None) -> None:
    if text is not None:
        console.print(f"{text}\n", style="dim", markup=False, highlight=False)

"""The commands of a chat, which begin with a slash."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.table import Table as RichTable

from kvfold.pipeline.chat.chat_model import ChatModel
from kvfold.pipeline.chat.show_reply import quote
from kvfold.pipeline.show.table import Cell, Table
from kvfold.pipeline.show.terminal import draw_table
from kvfold.plugins.contract.byte_sizes import format_bytes
from kvfold.plugins.contract.errors import RequestError
from kvfold.runtime.llm.generation import TextChunk
from kvfold.runtime.llm.session import Session
from kvfold.runtime.metrics import Usage
from kvfold.runtime.sampling.params import SamplingParams

if TYPE_CHECKING:
    from kvfold.plugins.contract.chat_template import Message

KEYS = (
    ("Enter", "sends; Alt-Enter or Ctrl-J begins a new line, and a pasted text is one message"),
    ("Up, Down", "bring earlier messages back, Ctrl-R searches them"),
    ("Ctrl-C", "stops a reply and keeps what was said; empties a line that is being written"),
    ("Ctrl-D", "leaves"),
)


@dataclass
class Conversation:
    """What commands look at and change.

    Attributes:
        usages: what each reply so far cost, also of turns that were taken back.
        note: a line on how it is kept, to begin with.
        private: nothing of it is kept, for the arrow keys neither.
        unsaved: why it is not kept as it stands, as far as the user was told.
    """

    session: Session
    params: SamplingParams
    model: ChatModel
    console: Console
    usages: list[Usage] = field(default_factory=list)
    note: str | None = None
    private: bool = False
    unsaved: str | None = None


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        run: does it; returns a reply to show where it makes one.
        summary: its line in /help.
        takes: what is written after its name.
    """

    run: Callable[[Conversation, str], Iterable[TextChunk] | None]
    summary: str
    takes: Literal["", "[TEXT]", "FILE"] = ""


def run_command(conversation: Conversation, text: str) -> Iterable[TextChunk] | None:
    """Run what a user wrote after a slash; returns a reply to show where the command makes one.

    Raises:
        RequestError: there is no such command, or it takes something else; or the command's own.
    """
    name, *rest = text.split(maxsplit=1)
    command, argument = COMMANDS.get(name), "".join(rest).strip()
    if command is None:
        raise RequestError(
            f"there is no command {name}; /help lists them. A message may begin with a slash where a blank "
            "stands before it"
        )
    if argument and not command.takes:
        raise RequestError(f"{name} takes nothing after it, and got {argument!r:.80}")
    if command.takes == "FILE" and not argument:
        raise RequestError(f"{name} needs a file: {name} chat.md")
    return command.run(conversation, argument)


def _help(conversation: Conversation, argument: str) -> None:
    names = [(f"{name} {command.takes}".strip(), command.summary) for name, command in COMMANDS.items()]
    width = max(len(name) for name, _ in (*names, *KEYS))
    grid = RichTable.grid(padding=(0, 2))
    grid.add_column(width=width)
    for name, summary in (*names, ("", ""), *KEYS):
        grid.add_row(name, summary)
    conversation.console.print(grid)


def _system(conversation: Conversation, argument: str) -> None:
    session = conversation.session
    if argument:
        session.system = argument
        _say(conversation, "The system message is set; the turns so far stay and are read again after it.")
    else:
        _say(conversation, session.system or "There is no system message; /system TEXT sets one.")


def _undo(conversation: Conversation, argument: str) -> None:
    message = conversation.session.undo()
    _say(conversation, f"Taken back: {quote(message)} and its reply.")


def _retry(conversation: Conversation, argument: str) -> Iterable[TextChunk]:
    params = conversation.params
    chunks = conversation.session.retry(params)
    if params.temperature == 0 or params.seed is not None:
        why = "a temperature of 0" if params.temperature == 0 else f"the seed {params.seed}"
        _say(conversation, f"With {why} the reply is the same again; --temperature 0.7 lets it differ.")
    return chunks


def _clear(conversation: Conversation, argument: str) -> None:
    conversation.session.clear()
    _say(conversation, "All turns are taken back; the system message stays.")


def _save(conversation: Conversation, argument: str) -> None:
    messages = conversation.session.messages
    try:
        path = Path(argument).expanduser()
        with path.open("x", encoding="utf-8") as file:
            file.write(_as_line(messages) if path.suffix == ".jsonl" else _as_text(messages))
    except FileExistsError as error:
        raise RequestError(f"{path} is there already; name a new file") from error
    except (OSError, RuntimeError, ValueError) as error:  # also a user without a home, or a name with a NUL
        why = error.strerror if isinstance(error, OSError) else error
        raise RequestError(f"{argument} cannot be written ({why}); name another file") from error
    _say(conversation, f"{len(messages)} messages written to {path}.")


def _as_line(messages: Sequence[Message]) -> str:
    """As `calibration.source` of a recipe reads it."""
    return json.dumps({"messages": messages}, ensure_ascii=False) + "\n"


def _as_text(messages: Sequence[Message]) -> str:
    return "\n".join(f"## {message['role']}\n\n{message['content']}\n" for message in messages)


def _stats(conversation: Conversation, argument: str) -> None:
    tokens, model = conversation.session.num_tokens, conversation.model
    kv = model.kv_bytes(tokens)
    prompts = sum(usage.prompt_tokens for usage in conversation.usages)
    reused = sum(usage.reused_tokens for usage in conversation.usages)
    rows: list[tuple[str | Cell, ...]] = [
        ("context", f"{tokens:,} of {model.context_length:,} tokens"),
        ("KV cache of this conversation", format_bytes(kv.folded)),
        ("the unfolded model's, in bf16", format_bytes(kv.original)),
        ("prompt tokens so far", f"{prompts:,}"),
        ("of these, from the cache", f"{reused:,}" + (f" ({reused / prompts:.0%})" if prompts else "")),
    ]
    if tokens:
        rows.insert(3, ("smaller", Cell(f"{kv.reduction:.1f} x", "good" if kv.reduction > 1 else "bad")))
    conversation.console.print(draw_table(Table.of("", ("", ""), rows)))


def _say(conversation: Conversation, text: str) -> None:
    conversation.console.print(text, style="dim", markup=False, highlight=False)


COMMANDS = {
    "/help": Command(_help, "shows this list"),
    "/system": Command(_system, "sets the system message, or shows it", "[TEXT]"),
    "/undo": Command(_undo, "takes the last message and its reply back"),
    "/retry": Command(_retry, "answers the last message again"),
    "/clear": Command(_clear, "takes all turns back"),
    "/save": Command(_save, "writes the conversation: .jsonl as calibration reads it, else as text", "FILE"),
    "/stats": Command(_stats, "shows what the cache takes and what it gave"),
}

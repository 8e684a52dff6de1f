"""`kvfold run`: chat with a bundle in the terminal."""

from __future__ import annotations

import sys
from dataclasses import replace
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich import get_console

from kvfold.pipeline.commands.options.built_bundle import built_bundle
from kvfold.pipeline.commands.options.recipe_arguments import output_option, recipe_argument, target_options
from kvfold.pipeline.commands.options.sampling_options import sampling_options
from kvfold.pipeline.commands.options.server_options import BytesType

if TYPE_CHECKING:
    from kvfold.pipeline.chat.kept_chats import Keeping
    from kvfold.runtime.llm.llm import LLM
    from kvfold.runtime.sampling.params import SamplingParams

EXIT_INTERRUPTED = 130


@click.command("run")
@recipe_argument
@output_option
@target_options
@click.option("--system", help="A system message for the conversation.")
@click.option("--resume", is_flag=True, help="Go on with the last chat with this bundle.")
@click.option("--session", "name", help="Go on with the chat of this name, or begin it.")
@click.option("--private", is_flag=True, help="Keep nothing of this chat, for the arrow keys neither.")
@click.option(
    "--kv-host-bytes",
    type=BytesType(),
    default=0,
    help="Of host memory for pages that a GPU's pools gave up; such as 8GiB.  [default: none]",
)
@sampling_options
def command(
    recipe: str,
    output: Path | None,
    target: str | None,
    architectures: tuple[int, ...],
    system: str | None,
    resume: bool,
    name: str | None,
    private: bool,
    kv_host_bytes: int,
    params: SamplingParams,
) -> None:
    """Chat with RECIPE's model; RECIPE may also be the folder of a built bundle.

    Stages that are not up to date run first. In the chat /help lists the commands, Ctrl-C stops a reply and
    keeps what was said, Ctrl-D leaves. After each reply a line says how many prompt tokens came from the
    cache. A conversation that is longer than the context gives up its oldest turns.

    A chat is kept in your folder for state, for 30 days: --resume goes on with the last one. Its pages are
    kept too, up to 1 GiB for all chats, so that it costs its new tokens only. Lines that are piped in are
    answered one by one, without colours, until they end; they are kept only with --resume or --session.

    \b
    Examples:
      kvfold run                                  the demo model
      kvfold run bundles/compact --system "Be brief"  a built bundle; needs no torch
      kvfold run --resume                         goes on with yesterday's conversation
      kvfold run --temperature 0.7 --seed 1       sampled instead of greedy
      echo "What is a KV cache?" | kvfold run     a single question
    """
    from kvfold.pipeline.chat.kept_chats import Keeping
    from kvfold.pipeline.chat.show_reply import can_draw

    keeping = Keeping(resume, name, private)
    root, target = built_bundle(recipe, output, target, architectures)
    by_hand = sys.stdin.isatty() and can_draw(get_console())
    llm = _load(root, target, {"kv_host_bytes": kv_host_bytes, **keeping.pages(by_hand)})
    try:
        _converse(llm, root, system, params, keeping, by_hand)
    except KeyboardInterrupt:  # outside a reply in a terminal
        raise click.exceptions.Exit(EXIT_INTERRUPTED) from None


def _load(root: Path, target: str, given: dict[str, Any]) -> LLM:
    """The engine with its own defaults, but for what is given of RuntimeConfig."""
    from kvfold.runtime.bundle import open_bundle
    from kvfold.runtime.engine.engine_files import open_engine
    from kvfold.runtime.llm.llm import LLM, default_config

    config = default_config(open_engine(open_bundle(root), target).config)
    return LLM.load(root, replace(config, **given), target)


def _converse(
    llm: LLM, root: Path, system: str | None, params: SamplingParams, keeping: Keeping, by_hand: bool
) -> None:
    """A chat where a person sits at a terminal, else a reply to each line."""
    from kvfold.pipeline.chat.piped_chat import answer_lines
    from kvfold.runtime.status import published

    console = get_console()
    file, note = keeping.open(llm, root, by_hand)
    with published(llm, str(root)), llm.session(system, "drop_oldest", file) as session:
        if not by_hand:
            answer_lines(session, params, TextIOWrapper(sys.stdin.buffer, "utf-8", "replace"))
            return
        from kvfold.pipeline.chat.chat_commands import Conversation
        from kvfold.pipeline.chat.chat_model import ChatModel
        from kvfold.pipeline.chat.run_chat import run_chat

        model = ChatModel.read(root, llm.generator.loop.max_length)
        run_chat(Conversation(session, params, model, console, note=note, private=keeping.private))

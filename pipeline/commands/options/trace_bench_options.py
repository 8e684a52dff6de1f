"""Options of `kvfold bench --trace`; names and defaults are TraceSettings' own."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from kvfold.pipeline.bench.trace.trace_settings import CONTEXT_BLOCKS, ENDS, TraceSettings
from kvfold.pipeline.commands.options.refuse_typed import refuse_typed
from kvfold.plugins.contract.byte_sizes import parse_bytes
from kvfold.plugins.contract.errors import RequestError


class BudgetsType(click.ParamType[tuple[int, ...]]):
    """Amounts of bytes separated by commas."""

    name = "budgets"

    def convert(
        self, value: str | tuple[int, ...], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Refuse what is no amount."""
        if isinstance(value, tuple):  # the default
            return value
        try:
            return tuple(parse_bytes(part) for part in value.split(","))
        except RequestError as error:
            self.fail(str(error), param, ctx)


DEFAULTS = TraceSettings(Path())
OPTIONS = (
    click.option(
        "--requests",
        type=click.IntRange(min=1),
        default=DEFAULTS.requests,
        help="With --trace: how many of its first requests.  [default: all]",
    ),
    click.option(
        "--budgets",
        type=BudgetsType(),
        default=DEFAULTS.budgets,
        show_default="64MiB,256MiB,1GiB",
        metavar="BYTES,...",
        help="With --trace: bytes of KV memory, a replay for each.",
    ),
    click.option(
        "--block-tokens",
        type=click.IntRange(min=1),
        default=DEFAULTS.block_tokens,
        show_default=True,
        help="With --trace: what its blocks of 512 tokens become; lengths shrink with them. 512 leaves them.",
    ),
    click.option(
        "--ends",
        type=click.Choice(ENDS),
        default=DEFAULTS.ends,
        show_default=True,
        help="With --trace, which knows neither prompts' last tokens nor replies. chat: both are what the "
        "conversation's next request reads. whole: prompts cut to whole blocks, no replies. recorded: "
        "prompts end in blocks of their own, no replies.",
    ),
    click.option(
        "--at-once",
        type=click.IntRange(min=1),
        default=DEFAULTS.at_once,
        show_default=True,
        help="With --trace: requests that run at once; the times in the trace do not count.",
    ),
    click.option(
        "--step-tokens",
        type=click.IntRange(min=1),
        default=DEFAULTS.step_tokens,
        show_default=True,
        help="With --trace: tokens of a step at most.",
    ),
    click.option(
        "--context",
        type=click.IntRange(min=2),
        default=DEFAULTS.context,
        help="With --trace: tokens of the longest sequence, more than the model's if you like; longer "
        f"prompts are cut.  [default: {CONTEXT_BLOCKS} blocks]",
    ),
)
NAMES = ("requests", "budgets", "block_tokens", "ends", "at_once", "step_tokens", "context")
OF_ENGINES = ("output", "peers", "peer_python", "threads", "rounds", "quick", "work")


def trace_bench_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options; the command gets them together as `replay`, None unless a trace is replayed alone."""

    @wraps(function)
    def with_settings(**options: Any) -> Any:
        values = {name: options.pop(name) for name in NAMES}
        replay = None
        if options["trace"] is None or options["serve"]:
            refuse_typed(NAMES, "for a trace without a server; add --trace and no --serve, or leave this out")
        else:
            refuse_typed(OF_ENGINES, "for an engine, and a trace is replayed without one; leave this out")
            replay = TraceSettings(trace=options["trace"], json=options["json"], **values)
        return function(**options, replay=replay)

    command: Callable[..., Any] = with_settings
    for option in reversed(OPTIONS):
        command = option(command)
    return command

"""Options of `kvfold bench`; names and defaults are BenchSettings' own."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from kvfold.pipeline.bench.bench_settings import BenchSettings
from kvfold.pipeline.bench.contenders import PEERS, PEERS_IN_4_BITS, PEERS_ON_CUDA
from kvfold.pipeline.machine.targets import TARGETS

EVERYONE = PEERS + PEERS_IN_4_BITS + PEERS_ON_CUDA


class PeersType(click.ParamType[tuple[tuple[str, ...], bool]]):
    """`auto`, `all`, `none`, or names separated by commas; becomes (names, required)."""

    name = "peers"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[tuple[str, ...], bool]:
        """Refuse unknown names."""
        if value == "auto":
            return PEERS, False
        if value == "all":
            return PEERS + PEERS_IN_4_BITS, False
        if value == "none":
            return (), False
        names = tuple(value.split(","))
        for name in names:
            if name not in EVERYONE:
                self.fail(
                    f"{name!r} is no peer; use auto, all, none, or names of {', '.join(EVERYONE)}", param, ctx
                )
        return names, True


DEFAULTS = BenchSettings()
OPTIONS = (
    click.option(
        "--target",
        type=click.Choice(list(TARGETS)),
        default=DEFAULTS.target,
        show_default=True,
        help="Which of the bundle's engines; on a GPU the peers are those that end in _cuda.",
    ),
    click.option(
        "--peers",
        type=PeersType(),
        default="auto",
        show_default=True,
        help="`auto` measures the peers that are installed and skips the others; `all` those in 4 bits too; "
        f"`none`; or names, separated by commas, that must be there: {', '.join(EVERYONE)}.",
    ),
    click.option(
        "--beside", multiple=True, help="A recipe to measure beside RECIPE; with --serve in scenario peers."
    ),
    click.option(
        "--peer-python",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        default=DEFAULTS.peer_python,
        show_default="this Python",
        help="Interpreter of the environment that has the peers.",
    ),
    click.option("--threads", type=click.IntRange(min=1), default=DEFAULTS.threads, show_default=True),
    click.option(
        "--rounds",
        type=click.IntRange(min=1),
        default=DEFAULTS.rounds,
        show_default=True,
        help="Fresh processes of each contender; medians are over them.",
    ),
    click.option(
        "--quick", is_flag=True, help="Short contexts only: a minute's look, not figures to publish."
    ),
)


def bench_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options; the command gets them together as `settings`."""

    @wraps(function)
    def with_settings(**options: Any) -> Any:
        peers, required = options.pop("peers")
        target = options.pop("target")
        workloads = DEFAULTS.workloads if target == "cpu" else "full_on_gpu"
        if options.pop("quick"):
            workloads = "quick"
        if target != "cpu" and peers and not required:
            peers = PEERS_ON_CUDA
        others = {name: options.pop(name) for name in ("peer_python", "threads", "rounds")}
        others["beside"] = options["beside"]  # servers have it, too
        settings = BenchSettings(target=target, peers=peers, required=required, workloads=workloads, **others)
        return function(**options, settings=settings)

    command: Callable[..., Any] = with_settings
    for option in reversed(OPTIONS):
        command = option(command)
    return command

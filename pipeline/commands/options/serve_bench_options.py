"""Options of `kvfold bench --serve`; names and defaults are ServeSettings' own."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from kvfold.pipeline.bench.serving.scenario_names import ON_REQUEST, TITLES
from kvfold.pipeline.bench.serving.serve_settings import ServeSettings
from kvfold.pipeline.commands.options.refuse_typed import refuse_typed

DEFAULTS = ServeSettings()
FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
OPTIONS = (
    click.option(
        "--scenario",
        "scenarios",
        type=click.Choice(list(TITLES)),
        multiple=True,
        default=DEFAULTS.scenarios,
        show_default=f"all but {' and '.join(ON_REQUEST)}",
        help="With --serve: what is measured. "
        + "; ".join(f"{name}: {text}" for name, text in TITLES.items()),
    ),
    click.option(
        "--llama-server",
        type=FILE,
        help="With --serve: llama.cpp's server, in scenario peers; docs/commands.md says how to build it.",
    ),
    click.option(
        "--url",
        "urls",
        multiple=True,
        help="With --serve: a running server of the same model, in scenario peers; any of OpenAI's API.",
    ),
    click.option(
        "--trace",
        type=FILE,
        help="Hit rates on this trace, in Mooncake's form. With --serve: what scenario trace replays.",
    ),
    click.option(
        "--minutes",
        type=click.FloatRange(min=1),
        default=DEFAULTS.minutes,
        show_default=True,
        help="With --serve: of scenario soak.",
    ),
    click.option(
        "--json",
        type=click.Path(path_type=Path, dir_okay=False),
        help="With --serve or --trace: where the result goes.  [default: report/serve.json in the bundle; "
        "nowhere without --serve]",
    ),
)
OF_THE_OTHER_BENCH = ("peers", "peer_python", "quick")
OF_TRACES_TOO = {"trace", "json"}
OF_ENGINES_TOO = {"beside"}


def serve_bench_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options; the command gets them together as `serving`, None without --serve."""

    @wraps(function)
    def with_settings(**options: Any) -> Any:
        values = {name: options.pop(name) for name in ServeSettings.__dataclass_fields__}
        serve = options.pop("serve")
        if serve:
            refuse_typed(OF_THE_OTHER_BENCH, "for an engine in process; leave this out, or leave out --serve")
        else:
            fine = OF_TRACES_TOO if values["trace"] is not None else set()
            refuse_typed(set(values) - fine - OF_ENGINES_TOO, "for servers; add --serve, or leave this out")
        return function(**options, serving=ServeSettings(**values) if serve else None)

    command: Callable[..., Any] = with_settings
    for option in reversed(OPTIONS):
        command = option(command)
    return click.option("--serve", is_flag=True, help="Measure `kvfold serve` under load instead.")(command)

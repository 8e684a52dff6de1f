"""Options of the commands that generate text; names, defaults and limits are SamplingParams' own."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from kvfold.runtime.sampling.params import SamplingParams

_HELP = {
    "max_tokens": (int, "Tokens of a reply at most."),
    "temperature": (float, "0 takes the likeliest token; above, logits are divided by it."),
    "top_k": (int, "Keep the k likeliest tokens; 0 keeps all."),
    "top_p": (float, "Keep the smallest set of likeliest tokens with this mass."),
    "min_p": (float, "Drop tokens less likely than this times the likeliest."),
    "repetition_penalty": (float, "Above 1 makes tokens that were already seen less likely."),
    "seed": (int, "The same seed gives the same reply."),
}


def sampling_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options; the command gets them together as `params`."""

    @wraps(function)
    def with_params(**options: Any) -> Any:
        chosen = {name: options.pop(name) for name in _HELP}
        return function(**options, params=SamplingParams(**chosen))

    defaults = SamplingParams()
    command: Callable[..., Any] = with_params
    for name, (kind, text) in reversed(_HELP.items()):
        flag = f"--{name.replace('_', '-')}"
        default = getattr(defaults, name)
        command = click.option(flag, name, type=kind, default=default, show_default=True, help=text)(command)
    return command

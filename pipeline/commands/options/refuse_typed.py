"""Options that were typed where they would do nothing."""

from __future__ import annotations

from collections.abc import Collection

import click
from click.core import ParameterSource


def refuse_typed(names: Collection[str], what: str) -> None:
    """Refuse those of the command that runs; raises UsageError, which says what they are for."""
    context = click.get_current_context()
    typed = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name in names
        and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
    ]
    if typed:
        raise click.UsageError(f"{', '.join(typed)}: {what}")

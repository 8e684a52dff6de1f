"""`kvfold completion`: the shell's completion script."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print the completion script of SHELL; recipes and options complete too.

    \b
    Examples:
      kvfold completion bash >> ~/.bashrc
      kvfold completion zsh  >> ~/.zshrc
      kvfold completion fish > ~/.config/fish/completions/kvfold.fish
    """
    completion_class = get_completion_class(shell)
    assert completion_class is not None, "click.Choice admits only shells that click completes"
    click.echo(completion_class(context.find_root().command, {}, "kvfold", "_KVFOLD_COMPLETE").source())

"""The `kvfold` command: a table of commands, each in a module of its own that loads when it runs."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module

import click

from kvfold.plugins.contract.errors import KvfoldError, ValidationError
from kvfold.plugins.contract.version import VERSION

EXIT_MISSED = 1
EXIT_ERROR = 2


@dataclass(frozen=True)
class CommandEntry:
    """The module of `pipeline.commands` that has a command's object, and its line in `kvfold --help`."""

    module: str
    summary: str


COMMANDS = {
    "plan": CommandEntry("make.plan", "Search a recipe's plan by measurement."),
    "write": CommandEntry("make.write", "Let a recipe's model write a text to calibrate or compare with."),
    "export": CommandEntry("make.export", "Fold a checkpoint, calibrate it, write ONNX."),
    "heal": CommandEntry("make.heal", "Train what folding changed, and write an adapter."),
    "build": CommandEntry("make.build", "Export, then build the engine of the recipe's target."),
    "validate": CommandEntry("measure.validate", "Compare original, folded model and engine."),
    "eval": CommandEntry(
        "measure.eval",
        "Measure what the fold costs: perplexity, KL, retrieval, last words.",
    ),
    "frontier": CommandEntry(
        "measure.frontier",
        "Draw KV bytes against KL and perplexity for a ladder of recipes.",
    ),
    "ablate": CommandEntry("measure.ablate", "Compare ways to merge heads: ours, and those the field uses."),
    "run": CommandEntry("use.run", "Chat with a bundle in the terminal."),
    "serve": CommandEntry("use.serve", "Serve a bundle over HTTP, as OpenAI's API."),
    "demo": CommandEntry("make.demo", "Everything, then a three-turn conversation and its numbers."),
    "inspect": CommandEntry("use.inspect", "Draw a recipe's or a bundle's plan and its KV bytes."),
    "bench": CommandEntry("measure.bench", "Measure the engine beside its peers."),
    "tune": CommandEntry("measure.tune", "Time the attention kernels on this GPU, for builds to choose by."),
    "doctor": CommandEntry("use.doctor", "What this machine can run, and why not."),
    "monitor": CommandEntry("use.monitor", "Watch GPUs, CPU, memory and running engines."),
    "completion": CommandEntry("use.completion", "Print the shell's completion script."),
}


class LazyGroup(click.Group):
    """A group that imports a command's module only to run it, so that `--help` stays instant."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order a user meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of one command."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command: click.Command = import_module(f"kvfold.pipeline.commands.{entry.module}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, but a name that is almost a command's is told so."""
        if args[0] not in COMMANDS and (near := get_close_matches(args[0], COMMANDS, n=1)):
            ctx.fail(f"No such command {args[0]!r}. Did you mean {near[0]!r}?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table's summaries, without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="kvfold")
def cli() -> None:
    """Fold the KV cache of a pretrained LLM and run it through a compiled engine.

    Commands take a RECIPE: the path of a YAML file, or the name of a shipped one (compact, balanced, horizon,
    character, mqa, identity). What they make goes into a bundle, bundles/<recipe> unless --output says
    otherwise. A stage whose recipe, inputs and code did not change is skipped.

    \b
    Start here:
      kvfold doctor             what this machine can run
      kvfold demo               SmolLM2-135M, folded and talking, in one go
      kvfold inspect character  what a plan does to the KV cache
    """


def main() -> None:
    """Entry point: errors a user can cause are printed, not raised.

    Exit codes: 0 done, 1 a validation threshold was missed, 2 bad input or an unusable machine,
    130 Ctrl-C (a bundle that was being written resumes).
    """
    try:
        code = _run()
    except KvfoldError as error:
        click.secho(f"{type(error).__name__}: {error}", err=True, fg="red")
        code = EXIT_MISSED if isinstance(error, ValidationError) else EXIT_ERROR
    except click.ClickException as error:
        error.show()
        code = EXIT_ERROR
    except (click.Abort, KeyboardInterrupt):
        click.echo("\nStopped. Run the same command again to go on where it stopped.", err=True)
        code = 130
    sys.exit(code if isinstance(code, int) else 0)


def _run() -> object:
    """What was typed; the import of a package that an extra brings, and is not there, is an error of ours."""
    try:
        return cli.main(standalone_mode=False, prog_name="kvfold")
    except ModuleNotFoundError as error:
        from kvfold.pipeline.machine.extras import explain_missing

        if (explained := explain_missing(error)) is None:
            raise
        raise explained from error


if __name__ == "__main__":
    main()

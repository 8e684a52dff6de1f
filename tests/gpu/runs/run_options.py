"""The command line that both runs share."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.gpu.runs.find_gpu import find_gpu
from tests.gpu.runs.run_groups import ROOT, Group, Run
from tests.gpu.runs.wheels import use_wheels


def parser(doc: str, seconds: float) -> argparse.ArgumentParser:
    """Options of a run: where its files go, how long it may take, where packages are."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--output", type=Path, default=Path(), help="folder for the JSON and Markdown files")
    made.add_argument("--seconds", type=float, default=seconds, help="when what still runs is ended")
    made.add_argument("--wheels", type=Path, help="folder of wheels for what is not installed")
    return made


def run_groups(
    title: str, options: argparse.Namespace, groups: Callable[[], list[Group]], together: int, threads: int
) -> int:
    """Run the groups as the options say; the exit code. Arguments as of `Run`."""
    with tempfile.TemporaryDirectory() as packages:
        _say_where_kvfold_is()
        if options.wheels is not None:
            say(f"from wheels: {', '.join(use_wheels(options.wheels, Path(packages))) or 'nothing'}")
        run = Run(title, groups(), options.output, options.seconds, together, threads, say)
        return run.run(find_gpu())


def say(line: str) -> None:
    """A line for whoever watches, at once."""
    print(line, flush=True)


def _say_where_kvfold_is() -> None:
    """Groups find kvfold where it is not installed: its package is a folder of this checkout."""
    paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)

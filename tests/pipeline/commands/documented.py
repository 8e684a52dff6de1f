"""The command lines that our pages and our commands' help name, as data."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

import click

from kvfold.pipeline.cli import COMMANDS, cli
from tests.root import ROOT

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "pipeline").rglob("*.md")),
]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
SHELLS = ("", "sh", "bash", "console")
# A command in a sentence may stand for its kind, with a word for what the reader puts there.
PLACEHOLDERS = {"RECIPE": "my.yaml", "FILE": "found.yaml", "FOLDER": "bundles/compact", "SHELL": "bash"}


@dataclass(frozen=True)
class Documented:
    """One command line.

    Attributes:
        place: the page, or the command whose help names it.
        line: as it is written, without the explanation behind it.
        typed: what comes through a pipe; None where nothing does.
    """

    place: str
    line: str
    typed: str | None = None

    @property
    def arguments(self) -> list[str]:
        """What `kvfold` is given: the command's name first."""
        return [PLACEHOLDERS.get(word, word) for word in shlex.split(self.line)[1:]]


def command_lines(lines: list[str], place: str) -> list[Documented]:
    """Those lines of a block that call `kvfold`; what stands behind two spaces or a # explains them."""
    found = []
    for line in lines:
        code = re.split(r"\s#|\s{2,}", line.strip())[0].strip()
        piped = re.match(r'echo "(.*)" \| (kvfold .*)', code)
        typed, code = piped.groups() if piped else (None, code)
        if code.startswith("kvfold "):
            found.append(Documented(place, re.split(r" >>? ", code)[0].strip(), typed))
    return found


def blocks(text: str) -> list[str]:
    """Lines of a page's fenced blocks without a language or of a shell, and of its indented ones."""
    fenced = [content for language, content in FENCED.findall(text) if language in SHELLS]
    indented = re.findall(r"^ {4}(\S.*)$", FENCED.sub("", text), re.M)
    return [line.removeprefix("$ ") for content in fenced for line in content.splitlines()] + indented


def make_lines() -> list[Documented]:
    """Commands behind the `make` lines of the pages and of the Makefile's head, as make would run them."""
    found = []
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    head = [line.removeprefix("#") for line in makefile.splitlines() if line.startswith("#   make ")]
    pages = [(page.name, line) for page in PAGES for line in blocks(page.read_text(encoding="utf-8"))]
    for place, line in [*pages, *(("Makefile", line) for line in head)]:
        for code in re.split(r"\s#|\s{2,}", line.strip())[0].split(" && "):
            if code.startswith("make "):
                command = [*shlex.split(code), "--dry-run"]
                # Without what `make test ARGS=...` gives to a make within it.
                alone = {"PATH": os.environ["PATH"]}
                printed = subprocess.run(
                    command, cwd=ROOT, env=alone, capture_output=True, text=True, check=True
                ).stdout
                ran = [re.sub(r"^\S*/kvfold ", "kvfold ", text) for text in printed.splitlines()]
                found += command_lines([re.sub(r" +", " ", text) for text in ran], f"{place}: {code}")
    return found


def examples() -> list[Documented]:
    """Of the help of `kvfold` and of each of its commands."""
    context = click.Context(cli)
    found = command_lines((cli.help or "").splitlines(), "kvfold --help")
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        found += command_lines((command.help or "").splitlines(), f"kvfold {name} --help")
    return found


def mentioned() -> list[Documented]:
    """Commands within sentences of the pages, in backticks: with arguments of their own or without."""
    found = []
    for page in PAGES:
        text = FENCED.sub("", page.read_text(encoding="utf-8"))
        spans = [" ".join(span.split()) for span in re.findall(r"(?<!`)`(kvfold [^`]+)`(?!`)", text)]
        found += [Documented(page.name, span) for span in spans]
    return found


def documented() -> list[Documented]:
    """Every line of a block, of make and of an example, each different one once, in the order of reading."""
    lines = [
        found
        for page in PAGES
        for found in command_lines(blocks(page.read_text(encoding="utf-8")), page.name)
    ]
    by_line: dict[tuple[str, str | None], Documented] = {}
    for each in [*lines, *make_lines(), *examples()]:
        by_line.setdefault((each.line, each.typed), each)
    return list(by_line.values())


def parse_arguments(arguments: list[str]) -> list[str]:
    """What click leaves over of a command's arguments; raises click.UsageError where it refuses them."""
    name, *rest = arguments
    command = cli.get_command(click.Context(cli), name)
    if command is None:
        raise click.UsageError(f"no command {name}")
    _, left_over, _ = command.make_parser(click.Context(command)).parse_args(rest)
    return left_over


def recipe_files(arguments: list[str]) -> list[Path]:
    """Files of recipes among arguments, but for the one that is written."""
    outputs = {arguments[i + 1] for i, word in enumerate(arguments[:-1]) if word in ("-o", "--output")}
    return [Path(word) for word in arguments if word.endswith(".yaml") and word not in outputs]

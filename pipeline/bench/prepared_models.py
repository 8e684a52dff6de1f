"""Peers' models, converted once from the same weights and kept: a folder per checkpoint, peer and version."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from kvfold.export.checkpoint.checkpoint import Checkpoint
from kvfold.pipeline.bench.models.huggingface_folder import write_huggingface_folder
from kvfold.pipeline.bench.processes.jobs import Prepare
from kvfold.pipeline.bench.processes.process import run_job


class PreparedModels:
    """The models of one checkpoint below a work folder."""

    def __init__(self, work: Path, checkpoint: Checkpoint) -> None:
        self._root = (work / checkpoint.fingerprint[:12]).resolve()
        self._checkpoint = checkpoint

    def prepare(self, contender: str, version: str, python: Path) -> Path:
        """The model of a peer; converted by the peer's own tools when it is not there yet.

        Raises:
            WorkerError: the conversion failed.
        """
        source = self._finish(
            "huggingface", lambda folder: write_huggingface_folder(self._checkpoint, folder)
        )

        def convert(folder: Path) -> None:
            run_job(Prepare(contender, str(source), str(folder)), python)

        return self._finish(f"{contender}-{version}", convert)

    def _finish(self, name: str, write: Callable[[Path], None]) -> Path:
        """Write a folder aside and rename it, so that a folder that exists is whole."""
        folder = self._root / name
        if not folder.is_dir():
            aside = self._root / f"{name}.partial"
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            write(aside)
            aside.rename(folder)
        return folder

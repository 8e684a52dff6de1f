"""Peers' models, converted once from the same weights and kept: a folder per checkpoint, peer and version."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from kvfold.export.checkpoint.checkpoint import Checkpoint
from kvfold.pipeline.bench.models.gguf_from_huggingface import write_gguf
from kvfold.pipeline.bench.models.gguf_vocabulary import add_vocabulary
from kvfold.pipeline.bench.models.huggingface_folder import write_huggingface_folder
from kvfold.pipeline.bench.processes.jobs import Prepare
from kvfold.pipeline.bench.processes.process import run_job
from kvfold.plugins.contract.errors import TargetError

SERVED = "served-q8_0.gguf"

LAYOUT = 4  # of what is written; another number where it changes


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
        source = self._huggingface()

        def convert(folder: Path) -> None:
            run_job(Prepare(contender, str(source), str(folder)), python)

        return self._finish(f"{contender}-{version}-{LAYOUT}", convert)

    def served_gguf(self) -> Path:
        """A GGUF file with Q8_0 matrices, tokenizer and chat template, as llama.cpp's server reads it.

        Raises:
            UnsupportedModelError: llama.cpp has no pre-tokenizer like this tokenizer's.
        """
        source, tokenizer = self._huggingface(), self._checkpoint.tokenizer
        vocab_size = self._checkpoint.config.vocab_size

        def convert(folder: Path) -> None:
            write_gguf(source, folder / SERVED, lambda writer: add_vocabulary(writer, tokenizer, vocab_size))

        return self._finish("served", convert) / SERVED

    def _huggingface(self) -> Path:
        name = f"huggingface-{LAYOUT}"
        return self._finish(name, lambda folder: write_huggingface_folder(self._checkpoint, folder))

    def _finish(self, name: str, write: Callable[[Path], None]) -> Path:
        """Write a folder aside and rename it, so that a folder that exists is whole.

        Raises:
            TargetError: the disk does not take it.
        """
        folder = self._root / name
        if not folder.is_dir():
            aside = self._root / f"{name}.partial"
            shutil.rmtree(aside, ignore_errors=True)
            try:
                aside.mkdir(parents=True)
                write(aside)
                aside.rename(folder)
            except OSError as error:
                raise TargetError(
                    f"{folder} cannot be written: {error}; free space, or name another folder by --work"
                ) from error
            finally:
                shutil.rmtree(aside, ignore_errors=True)
        return folder

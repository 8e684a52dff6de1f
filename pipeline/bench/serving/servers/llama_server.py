"""llama.cpp's own server, of a binary that the user has."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from kvfold.pipeline.bench.serving.servers.started_server import HOST, ServerCommand
from kvfold.plugins.contract.errors import TargetError

TITLE, READY = "llama-server", "/health"


@dataclass(frozen=True)
class LlamaServer:
    """A binary and a model.

    Attributes:
        binary: `llama-server`.
        model: a GGUF file with its tokenizer.
    """

    binary: Path
    model: Path

    def version(self) -> str:
        """What it says of itself.

        Raises:
            TargetError: it cannot be run.
        """
        try:
            # It prints its version to stderr.
            said = subprocess.run([self.binary, "--version"], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise TargetError(
                f"{self.binary} is no llama-server: {error}; docs/commands.md says how to build one"
            ) from error
        lines = (said.stdout + said.stderr).splitlines()
        return next((line.removeprefix("version: ") for line in lines if "version:" in line), "unknown")

    def command(self, at_once: int, length: int, threads: int) -> ServerCommand:
        """A slot for each of `at_once` sequences of up to `length` tokens; all else is its default."""
        options = {
            "--model": str(self.model),
            "--host": HOST,
            "--port": "{port}",
            "--parallel": str(at_once),
            "--ctx-size": str(at_once * length),
            "--threads": str(threads),
        }
        parts = tuple(part for option in options.items() for part in option)
        # It closes the connection after a stream and does not say so.
        return ServerCommand(TITLE, (str(self.binary), *parts), READY, keeps_alive=False)

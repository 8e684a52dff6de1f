"""`kvfold serve`, as a user starts it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from kvfold.pipeline.bench.serving.servers.started_server import HOST, ServerCommand

READY = "/health/ready"


@dataclass(frozen=True)
class KvfoldOptions:
    """Of `kvfold serve`, those that a scenario sets.

    Attributes:
        max_num_seqs: requests that run at once.
        kv_cache_bytes: of all page pools; None for its default.
        threads: of the engine; 0 for its default.
        state_dir: folder of what outlives the server; None for none.
    """

    max_num_seqs: int
    kv_cache_bytes: int | None = None
    threads: int = 0
    state_dir: Path | None = None

    def arguments(self) -> tuple[str, ...]:
        """As they are typed."""
        cache = () if self.kv_cache_bytes is None else ("--kv-cache-bytes", str(self.kv_cache_bytes))
        threads = ("--threads", str(self.threads)) if self.threads else ()
        state = () if self.state_dir is None else ("--state-dir", str(self.state_dir))
        return ("--max-num-seqs", str(self.max_num_seqs), *cache, *threads, *state)


def kvfold_server(bundle: Path, options: KvfoldOptions) -> ServerCommand:
    """The server of a bundle that is built."""
    start = (sys.executable, "-m", "kvfold.pipeline.cli", "serve", str(bundle))
    return ServerCommand(
        f"kvfold {bundle.name}", (*start, "--host", HOST, "--port", "{port}", *options.arguments()), READY
    )


def zero_cost_server(bundle: Path, options: KvfoldOptions, pause: float = 0.0) -> ServerCommand:
    """The same server over an engine that computes nothing, and pauses so many seconds a step."""
    module = "kvfold.pipeline.bench.serving.servers.serve_zero_cost"
    start = (sys.executable, "-m", module, str(bundle), "{port}", str(options.max_num_seqs), str(pause))
    return ServerCommand("zero-cost engine", start, READY)

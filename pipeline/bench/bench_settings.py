"""BenchSettings: how a run is done. The command line reads its defaults from here."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from kvfold.pipeline.bench.contenders import PEERS


@dataclass(frozen=True)
class BenchSettings:
    """How a run is done.

    Attributes:
        peers: names in `PEERS`, `PEERS_IN_4_BITS` and `PEERS_ON_CUDA`.
        beside: recipes whose engines are measured too.
        required: a peer that cannot take part is an error, instead of a line among the skipped.
        peer_python: interpreter of the environment that has the peers.
        threads: compute threads of each contender.
        rounds: fresh processes of each contender; each gives one sample of every metric.
        workloads: name in `pipeline.bench.workloads.workloads.SETS`.
        target: of kvfold's engine.
    """

    peers: tuple[str, ...] = PEERS
    beside: tuple[str, ...] = ()
    required: bool = False
    peer_python: Path = Path(sys.executable)
    threads: int = 2
    rounds: int = 3
    workloads: str = "full"
    target: str = "cpu"

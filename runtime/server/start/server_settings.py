"""ServerSettings: how `kvfold serve` listens and ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvfold.plugins.contract.errors import RequestError
from kvfold.runtime.checks import check_integer, check_number
from kvfold.runtime.runtime_config import RuntimeConfig
from kvfold.runtime.server.guard.admission_limits import AdmissionLimits
from kvfold.runtime.server.guard.loopback import is_loopback

if TYPE_CHECKING:
    from kvfold.runtime.engine.engine_config import EngineConfig

# A queue of so many turns of the engine is long enough to be told to come again.
WAITING_PER_SEQUENCE = 8
# Sequences that a server runs at once, where no TensorRT plan has limits of its own; and seconds that prompts
# may keep running replies waiting: chunks that small cost a long prompt nothing (docs/results.md).
MAX_NUM_SEQS = 64
INTER_TOKEN_TARGET = 0.1


@dataclass(frozen=True)
class ServerSettings:
    """How a server listens and ends.

    Attributes:
        host: address to listen on; any but a loopback address needs `keys`.
        port: to listen on; 0 takes a free one.
        keys: file of keys (docs/serving.md); None serves whoever reaches the address.
        tls_cert: certificate chain, PEM; None serves plain HTTP.
        tls_key: its private key, PEM.
        max_waiting: replies that may wait for the engine; more are told 429. None: 8 for each sequence that
            it runs at once.
        max_sessions: of a tenant, and likewise stored responses; the one longest unused gives way.
        session_seconds: after which an unused session or response is forgotten.
        state_dir: folder that sessions and stored responses outlive the server in; None for memory alone.
        kv_tier_bytes: of the pages of conversations that lie in the state folder; 0 keeps none there.
        drain_seconds: for running replies after SIGTERM, before they are cancelled.
        kv_events: ZeroMQ address to publish KV events at, such as `tcp://*:5557`; None publishes none. Who
            reads it reads prompts' tokens.
        kv_events_topic: of them; None is `kv@HOST@MODEL`.
        stall_seconds: a step of the engine that takes longer is a hang: the server is not ready.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    keys: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    max_waiting: int | None = None
    max_sessions: int = 256
    session_seconds: float = 3600.0
    state_dir: Path | None = None
    kv_tier_bytes: int = RuntimeConfig.kv_tier_bytes
    drain_seconds: float = 30.0
    kv_events: str | None = None
    kv_events_topic: str | None = None
    stall_seconds: float = 30.0

    def __post_init__(self) -> None:
        """Refuse values out of range, and doors that stand open; raises RequestError."""
        check_integer("port", self.port, 0)
        check_number("port", self.port, 0, 65535)
        if self.max_waiting is not None:
            check_integer("max_waiting", self.max_waiting, 0)
        check_integer("max_sessions", self.max_sessions, 1)
        check_number("session_seconds", self.session_seconds, 0)
        check_integer("kv_tier_bytes", self.kv_tier_bytes, 0)
        check_number("drain_seconds", self.drain_seconds, 0)
        check_number("stall_seconds", self.stall_seconds, 1)
        if (self.tls_cert is None) != (self.tls_key is None):
            raise RequestError("TLS needs a certificate and its key; give --tls-cert and --tls-key")
        if self.keys is None and not is_loopback(self.host):
            raise RequestError(
                f"{self.host} can be reached from other machines, and there are no keys: whoever finds the "
                "port would use the model; give --keys FILE (docs/serving.md), or listen on 127.0.0.1"
            )

    def limits(self, max_num_seqs: int) -> AdmissionLimits:
        """What may be inside at an engine that runs so many sequences at once."""
        default = WAITING_PER_SEQUENCE * max_num_seqs
        return AdmissionLimits(max_num_seqs, default if self.max_waiting is None else self.max_waiting)


def serving_config(facts: EngineConfig, given: Mapping[str, Any]) -> RuntimeConfig:
    """How an engine runs for many clients: as given, else with this module's defaults.

    Args:
        facts: of the engine.
        given: fields of RuntimeConfig.

    Raises:
        RequestError: a value is out of range.
    """
    from kvfold.runtime.llm.llm import default_config

    base = default_config(facts)
    if facts.tensorrt is None:
        base = replace(base, max_num_seqs=MAX_NUM_SEQS)
    return replace(base, **{"inter_token_target": INTER_TOKEN_TARGET, **given})

"""ClusterSettings: what `serve run kvfold.runtime.cluster:build name=value ...` may say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from kvfold.plugins.contract.errors import RequestError
from kvfold.plugins.contract.record import Record
from kvfold.runtime.server.start.server_settings import ServerSettings

_OF_THE_SERVER = (
    *("keys", "max_waiting", "max_sessions", "session_seconds", "state_dir", "kv_tier_bytes"),
    "drain_seconds",
)
_OF_THE_ENGINE = ("kv_cache_bytes", "kv_host_bytes", "max_num_seqs", "threads", "inter_token_target")
DEFAULTS = ServerSettings()


class ClusterSettings(Record):
    """A cluster.

    Attributes:
        bundle: the bundle's folder, at the same path on every machine.
        target: the engine of the bundle.
        model_name: what clients call the model; None: the bundle's folder.
        replicas: engines, or the fewest where `max_replicas` is more.
        max_replicas: engines at most; None: `replicas`, as there is no autoscaling.
        waiting_tokens: prompt tokens that may wait on each engine before another is started.
        relays: processes without an engine that clients' requests come to. They keep sessions at their
            replicas, and go on with a stream whose replica died. 0: requests come to replicas at once.
        relay_key: what replicas know relays by; None: each deployment makes its own, and one that takes the
            place of another is not known to what is left of that.
        patience: seconds that a relay looks for a replica before it gives up.
        cpus: of an engine, as Ray reserves them.
        gpus: of an engine, as Ray reserves them.
        keys: as of `kvfold serve`, as are all that follow.
    """

    bundle: Path
    target: str = "cpu"
    model_name: str | None = None
    replicas: int = Field(default=1, ge=1)
    max_replicas: int | None = None
    waiting_tokens: int = Field(default=4096, ge=1)
    relays: int = Field(default=1, ge=0)
    relay_key: str | None = Field(default=None, min_length=16)
    patience: float = Field(default=60.0, gt=0)
    cpus: float = Field(default=1.0, ge=0)
    gpus: float = Field(default=0.0, ge=0)
    keys: Path | None = None
    max_waiting: int | None = None
    max_sessions: int = DEFAULTS.max_sessions
    session_seconds: float = DEFAULTS.session_seconds
    state_dir: Path | None = None
    kv_tier_bytes: int = DEFAULTS.kv_tier_bytes
    drain_seconds: float = DEFAULTS.drain_seconds
    kv_cache_bytes: int | None = None
    kv_host_bytes: int | None = None
    max_num_seqs: int | None = None
    threads: int | None = None
    inter_token_target: float | None = None

    @property
    def name(self) -> str:
        """What clients call the model."""
        return self.model_name or self.bundle.resolve().name

    @property
    def server(self) -> ServerSettings:
        """Of each replica; raises RequestError where a value is out of range."""
        return ServerSettings(**{name: getattr(self, name) for name in _OF_THE_SERVER})

    @property
    def engine(self) -> dict[str, Any]:
        """What was given of RuntimeConfig; the folder of pages follows from `server`."""
        given = {name: getattr(self, name) for name in _OF_THE_ENGINE}
        return {name: value for name, value in given.items() if value is not None}


def read_cluster_settings(given: Mapping[str, Any]) -> ClusterSettings:
    """Settings from names and values, which may be texts.

    Raises:
        RequestError: a name is unknown, or a value out of range.
    """
    try:
        settings = ClusterSettings.model_validate(dict(given))
    except ValidationError as error:
        wrong = error.errors()[0]
        name = ".".join(map(str, wrong["loc"]))
        raise RequestError(
            f"{name}: {wrong['msg']}, and it is {wrong.get('input')!r:.80}; see docs/cluster.md"
        ) from None
    if settings.max_replicas is not None and settings.max_replicas < settings.replicas:
        raise RequestError(
            f"max_replicas is {settings.max_replicas}, and replicas {settings.replicas}; give more"
        )
    _ = settings.server  # what is out of range is said here, not by each replica
    return settings

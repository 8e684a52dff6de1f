"""Options of `kvfold serve`; names, defaults and limits are ServerSettings' and RuntimeConfig's own."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from kvfold.plugins.contract.byte_sizes import format_bytes, parse_bytes
from kvfold.plugins.contract.errors import RequestError
from kvfold.runtime.server.start.server_settings import INTER_TOKEN_TARGET, MAX_NUM_SEQS, ServerSettings


class BytesType(click.ParamType[int]):
    """An amount of bytes, or none."""

    name = "bytes"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Refuse what is no amount."""
        if value in ("0", 0):
            return 0
        try:
            return value if isinstance(value, int) else parse_bytes(value)
        except RequestError as error:
            self.fail(str(error), param, ctx)


_FOLDER = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)
_SETTINGS: dict[str, tuple[Any, str]] = {
    "host": (str, "Address to listen on; any but this machine's own needs --keys."),
    "port": (int, "Port to listen on; 0 takes a free one."),
    "keys": (
        _FILE,
        "File of keys (docs/serving.md).  [default: none; whoever reaches the address is served]",
    ),
    "tls_cert": (_FILE, "Certificate chain, PEM: serve HTTPS."),
    "tls_key": (_FILE, "Its private key, PEM."),
    "max_waiting": (int, "Replies that may wait for the engine.  [default: 8 for each sequence at once]"),
    "max_sessions": (int, "Sessions of a tenant, and stored responses, that are kept."),
    "session_seconds": (float, "After which an unused session or response is forgotten."),
    "state_dir": (
        _FOLDER,
        "Folder that sessions, stored responses and their pages outlive the server in.  [default: none]",
    ),
    "kv_tier_bytes": (BytesType(), "Of pages in the state folder; 0 keeps none there."),
    "drain_seconds": (float, "For running replies after SIGTERM."),
    "kv_events": (
        str,
        "ZeroMQ address to publish vLLM's KV events at, such as tcp://*:5557; they tell prompts.  "
        "[default: none]",
    ),
    "kv_events_topic": (str, "Of these events.  [default: kv@HOST@MODEL]"),
}
_CONFIG: dict[str, tuple[Any, str]] = {
    "kv_cache_bytes": (int, "Bytes of all page pools.  [default: what the sequences need, up to 1 GiB]"),
    "max_num_seqs": (
        int,
        f"Sequences at once.  [default: {MAX_NUM_SEQS}, or a TensorRT plan's own]",
    ),
    "kv_host_bytes": (
        BytesType(),
        "Of host memory for pages that a GPU's pools gave up; such as 8GiB.  [default: none]",
    ),
    "threads": (int, "Of the engine.  [default: one for each physical core]"),
    "inter_token_target": (
        float,
        f"Seconds that prompts may keep running replies waiting.  [default: {INTER_TOKEN_TARGET}]",
    ),
}


def server_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options; the command gets `settings`, and `engine`: what was given of RuntimeConfig."""

    @wraps(function)
    def with_settings(**options: Any) -> Any:
        settings = ServerSettings(**{name: options.pop(name) for name in _SETTINGS})
        given = {name: value for name in _CONFIG if (value := options.pop(name)) is not None}
        return function(**options, settings=settings, engine=given)

    defaults = ServerSettings()
    command: Callable[..., Any] = with_settings
    for name, (kind, text) in reversed({**_SETTINGS, **_CONFIG}.items()):
        default: Any = getattr(defaults, name, None)
        if isinstance(kind, BytesType) and default is not None:
            default = format_bytes(default)
        shown = default is not None
        flag = f"--{name.replace('_', '-')}"
        command = click.option(flag, name, type=kind, default=default, show_default=shown, help=text)(command)
    return command

"""Options of `kvfold serve` as settings of the server, and as what was given of RuntimeConfig."""

from __future__ import annotations

from typing import Any

import click
from click.testing import CliRunner

from kvfold.pipeline.commands.options.server_options import server_options
from kvfold.runtime.runtime_config import RuntimeConfig
from kvfold.runtime.server.start.server_settings import ServerSettings


def given(*arguments: str) -> tuple[ServerSettings, dict[str, Any]]:
    found: list[tuple[ServerSettings, dict[str, Any]]] = []

    @click.command()
    @server_options
    def command(settings: ServerSettings, engine: dict[str, Any]) -> None:
        found.append((settings, engine))

    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return found[0]


def test_what_is_not_given_is_left_to_the_engine() -> None:
    assert given() == (ServerSettings(), {})


def test_amounts_of_bytes_have_units() -> None:
    settings, engine = given("--kv-host-bytes", "8GiB", "--kv-tier-bytes", "0", "--kv-cache-bytes", "4096")
    assert engine == {"kv_host_bytes": 8 << 30, "kv_cache_bytes": 4096} and settings.kv_tier_bytes == 0
    assert RuntimeConfig(**engine).kv_host_bytes == 8 << 30

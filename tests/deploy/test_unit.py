"""The systemd unit: what systemd itself says of it, and what it must share with the code."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kvfold.runtime.server.start.run_server import FLUSH_SECONDS
from tests.deploy.deploy_files import UNIT, serve_arguments, serve_options, unit_settings

SETTINGS = unit_settings()
# Of 100; what is left of it is mostly the network, which a server needs.
MAX_EXPOSURE = 15
UNITS = {"s": 1.0, "min": 60.0}

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None,
    reason="systemd-analyze is not here: that systemd takes the unit was not shown",
)


def seconds(setting: str) -> float:
    """A span of time that a setting names."""
    (text,) = SETTINGS[setting]
    number = text.rstrip("abcdefghijklmnopqrstuvwxyz")
    return float(number) * UNITS[text[len(number) :] or "s"]


def analyze(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """What systemd-analyze says of the unit, with a command that exists here."""
    program = SETTINGS["ExecStart"][0].split()[0]
    (tmp_path / UNIT.name).write_text(UNIT.read_text().replace(program, sys.executable))
    command = ["systemd-analyze", *words, str(tmp_path / UNIT.name)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@needs_systemd
def test_systemd_takes_every_setting(tmp_path: Path) -> None:
    verified = analyze(tmp_path, "verify")
    assert (verified.returncode, verified.stderr) == (0, "")


@needs_systemd
def test_the_service_can_do_little_beyond_serving(tmp_path: Path) -> None:
    judged = analyze(tmp_path, "security", "--offline=true", f"--threshold={MAX_EXPOSURE}")
    assert judged.returncode == 0, judged.stdout


def test_its_command_is_one_that_kvfold_takes() -> None:
    program, command, *words = SETTINGS["ExecStart"][0].split()
    assert (Path(program).name, command) == ("kvfold", "serve")
    assert serve_arguments(words).keys() <= serve_options() | {"bundle"}


def test_systemd_waits_for_the_drain() -> None:
    arguments = serve_arguments(SETTINGS["ExecStart"][0].split()[2:])
    assert seconds("TimeoutStopSec") > float(arguments["--drain-seconds"]) + FLUSH_SECONDS
    assert SETTINGS["KillSignal"] == ["SIGTERM"]


def test_the_watchdog_does_not_bite_a_service_that_drains() -> None:
    """While it drains, the server tells the watchdog nothing."""
    assert SETTINGS["Type"] == ["notify"]
    assert seconds("WatchdogSec") > seconds("TimeoutStopSec")


def test_a_service_that_fails_at_once_is_given_up() -> None:
    starting = 5.0
    (burst,) = SETTINGS["StartLimitBurst"]
    assert int(burst) * (seconds("RestartSec") + starting) < seconds("StartLimitIntervalSec")
    assert SETTINGS["Restart"] == ["on-failure"]

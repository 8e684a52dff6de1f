"""Clients that others wrote, unchanged, against the server. `make check-clients` installs them."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.root import ROOT
from tests.runtime.server.processes.real_server import CONTROL, MODEL
from tests.runtime.server.processes.spawned_server import ServerProcess, real_server

CLIENTS = ROOT / ".venv-clients"
SCRIPTS = Path(__file__).parent
ABSENT = "is not installed: `make check-clients` does so, then runs this"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with real_server(tmp_path_factory.mktemp("server")) as process:
        yield process


@pytest.fixture
def tokenizer(server: ServerProcess, tmp_path: Path) -> str:
    """The server's tokenizer in a folder as transformers reads it."""
    shutil.copy(server.folder / "tokenizer.json", tmp_path)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": CONTROL[0],
        "eos_token": CONTROL[1],
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return str(tmp_path)


def run(*command: str | Path, cwd: Path = SCRIPTS) -> None:
    ended = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=500)
    assert ended.returncode == 0, f"{ended.stdout[-2000:]}\n{ended.stderr[-4000:]}"


@pytest.mark.parametrize(
    ("package", "script"),
    [
        ("openai", "openai_python.py"),
        ("anthropic", "anthropic_python.py"),
        ("lm_eval", "lm_eval_tasks.py"),
        ("aiperf", "aiperf_profile.py"),
    ],
)
def test_a_python_client_works_as_it_is(
    package: str, script: str, server: ServerProcess, tokenizer: str
) -> None:
    if not list(CLIENTS.glob(f"lib/python3*/site-packages/{package}")):
        pytest.skip(f"{package} {ABSENT}")
    run(CLIENTS / "bin/python", SCRIPTS / script, server.url, MODEL, tokenizer)


def test_openai_s_javascript_client_works_as_it_is(server: ServerProcess) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node here, which runs JavaScript")
    if not (CLIENTS / "node_modules/openai").is_dir():
        pytest.skip(f"openai for JavaScript {ABSENT}")
    run(node, SCRIPTS / "openai_javascript.mjs", server.url, MODEL, cwd=CLIENTS)

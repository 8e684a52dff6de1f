"""`kvfold serve` as it is typed, on a tiny bundle: it answers as the LLM does, and ends when it is told."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvfold.runtime.llm.llm import LLM
from kvfold.runtime.sampling.params import SamplingParams

MAIN = "from kvfold.pipeline.cli import main; main()"
SECONDS = 120


class Served:
    """The command's process."""

    def __init__(self, *arguments: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        command = [sys.executable, "-c", MAIN, "serve", *arguments, "--port", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def ask(self, method: str, path: str, value: Any = None) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        try:
            body = None if value is None else json.dumps(value)
            connection.request(method, path, body, {"content-type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def wait_until_ready(self) -> None:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            try:
                if self.ask("GET", "/health/ready")[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.05)
        self.process.kill()
        raise AssertionError(self.process.communicate()[0])


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served") / "state"


@pytest.fixture(scope="module")
def served(small_bundle: Path, state: Path) -> Iterator[Served]:
    options = ("--served-model-name", "tiny", "--max-num-seqs", "2", "--state-dir", str(state))
    served = Served(str(small_bundle), *options)
    served.wait_until_ready()
    yield served
    served.process.kill()
    served.process.communicate()


def test_it_completes_as_the_llm_does(served: Served, small_bundle: Path) -> None:
    expected = LLM.load(small_bundle).generate("a cab", SamplingParams(max_tokens=6))[0]
    status, body = served.ask(
        "POST", "/v1/completions", {"model": "tiny", "prompt": "a cab", "max_tokens": 6, "temperature": 0}
    )
    answer = json.loads(body)
    assert status == 200, body
    assert answer["choices"][0]["text"] == expected.text
    assert answer["usage"]["completion_tokens"] == len(expected.token_ids)


def test_it_lists_its_model_and_counts_what_it_did(served: Served) -> None:
    assert json.loads(served.ask("GET", "/v1/models")[1])["data"][0]["id"] == "tiny"
    assert "vllm:num_requests_running" in served.ask("GET", "/metrics")[1]


def test_a_session_lies_on_the_disk_when_its_turn_is_told(served: Served, state: Path) -> None:
    asked = {"messages": [{"role": "user", "content": "a cab"}], "max_tokens": 3, "session_id": "s"}
    status, body = served.ask("POST", "/v1/chat/completions", asked)
    assert status == 200, body
    assert len(list(state.rglob("*.session"))) == 1
    assert json.loads(served.ask("GET", "/v1/kvfold/sessions/s")[1])["saved"]


def test_pages_lie_beside_the_sessions(served: Served, state: Path) -> None:
    asked = {"model": "tiny", "prompt": "a cab, " * 20, "max_tokens": 3}
    assert served.ask("POST", "/v1/completions", asked)[0] == 200
    end = time.monotonic() + SECONDS
    while not list((state / "kv").glob("*/*.checkpoint")):
        assert time.monotonic() < end, "no pages are written"
        time.sleep(0.05)
    assert (state / "kv").stat().st_mode & 0o777 == 0o700
    assert 'kvfold:tier_works{what="writing"} 1.0' in served.ask("GET", "/metrics")[1]


def test_a_grammar_that_the_tokenizer_cannot_be_held_to_is_the_client_s_error(served: Served) -> None:
    """The tiny tokenizer says too little of its tokens."""
    asked = {"model": "tiny", "prompt": "a cab", "structured_outputs": {"regex": "[ab]+"}}
    status, body = served.ask("POST", "/v1/completions", asked)
    assert status == 400 and "this server has no grammars" in body, body


def test_it_ends_when_it_is_told_to(served: Served) -> None:
    served.process.send_signal(signal.SIGTERM)
    log, _ = served.process.communicate(timeout=SECONDS)
    assert served.process.returncode == 0, log
    assert "listening on 127.0.0.1:" in log and "SIGTERM" in log
    assert "a cab" not in log, "a prompt is in the log"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "0.0.0.0"], "RequestError: 0.0.0.0 can be reached from other machines"),
        (["--keys", "none.json"], "RequestError: the keys in none.json cannot be read"),
        (["--state-dir", "/dev/null"], "RequestError: --state-dir /dev/null is no folder"),
        (["--kv-tier-bytes", "9 parsecs"], "'9 parsecs' is no amount of bytes"),
        (["--tls-cert", "cert.pem"], "RequestError: TLS needs a certificate and its key"),
        (["--kv-cache-bytes", "1"], "CapacityError: "),
        (["--target", "cuda"], "BundleError: "),
    ],
)
def test_what_cannot_be_served_says_why(small_bundle: Path, arguments: list[str], said: str) -> None:
    served = Served(str(small_bundle), *arguments)
    printed, _ = served.process.communicate(timeout=SECONDS)
    assert served.process.returncode == 2
    assert said in printed and "Traceback" not in printed, printed

"""`kvfold monitor --server`: a server's stream as it comes, ends, is refused, or is not there."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner

from kvfold.pipeline.commands.use.monitor import command
from kvfold.pipeline.machine import server_watch
from kvfold.pipeline.machine.server_watch import ServerWatch
from kvfold.plugins.contract.errors import RequestError
from kvfold.runtime import status
from kvfold.runtime.loop.snapshot import RequestView
from kvfold.runtime.metrics import PrefixMatch
from kvfold.runtime.server.caller import ANYONE
from kvfold.runtime.server.ui.server_view import ServerView
from tests.runtime.server.puppet_llm import PuppetLLM
from tests.runtime.server.served import make_server
from tests.runtime.server.test_run_server import wait_for as until

KEY = "a key"


class Script(BaseHTTPRequestHandler):
    """Sends events to who has the key, then waits for the end, or ends at once."""

    events: tuple[bytes, ...] = ()
    ends = threading.Event()

    def do_GET(self) -> None:
        if self.path != "/v1/kvfold/events" or self.headers["authorization"] != f"Bearer {KEY}":
            body = json.dumps({"error": {"message": "no key, or one that is unknown"}}).encode()
            self.send_response(401)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        self.send_response(200)
        self.end_headers()
        for event in self.events:
            self.wfile.write(b"data: " + event + b"\n\n: keep-alive\n\n")
        self.wfile.flush()
        self.ends.wait()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
        """Nothing."""


@contextmanager
def serving(*events: bytes, ends: bool = False) -> Iterator[str]:
    over = threading.Event()
    if ends:
        over.set()
    handler = type("Scripted", (Script,), {"events": events, "ends": over})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield "http://{}:{}/".format(*server.server_address)
    finally:
        over.set()
        server.shutdown()
        server.server_close()


def snapshot() -> bytes:
    llm = PuppetLLM()
    _, state = make_server(llm)
    llm.see(running=1, requests=(RequestView(7, "", "decode", 100, 16, 3, 0.0, None, PrefixMatch(64, 16)),))
    return json.dumps(ServerView(state, ANYONE).values()).encode()


def test_what_a_server_sends_is_known() -> None:
    first = json.loads(snapshot())
    ended = [{"at": at, "id": str(at)} for at in range(1, 9)]
    events = (
        json.dumps(first | {"ended": ended[:4]}).encode(),
        json.dumps(first | {"ended": ended[4:]}).encode(),
    )
    with serving(*events) as url:
        watch = ServerWatch(url, KEY)
        until(
            lambda: watch.seen.snapshot is not None and len(watch.seen.snapshot["ended"]) == server_watch.KEPT
        )
        seen = watch.seen
        assert seen.problem is None and seen.snapshot is not None
        assert [each["id"] for each in seen.snapshot["ended"]] == ["4", "5", "6", "7", "8"]
        assert seen.snapshot["server"]["model"] == "puppet"


@pytest.mark.parametrize(
    ("key", "ends", "problem"),
    [("another", False, "401: no key, or one that is unknown"), (KEY, True, "the stream ended")],
)
def test_a_refusal_and_an_end_are_said(key: str, ends: bool, problem: str) -> None:
    with serving(snapshot(), ends=ends) as url:
        watch = ServerWatch(url, key)
        until(lambda: watch.seen.problem == problem)
        assert (watch.seen.snapshot is not None) == ends, "the last snapshot stays"


def test_a_server_that_is_not_there_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    watch = ServerWatch(f"http://127.0.0.1:{port}")
    watch.wait(10)
    assert "refused" in str(watch.seen.problem)


def test_a_watch_goes_on_when_the_server_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_watch, "RETRY_SECONDS", 0.01)
    with serving(snapshot(), ends=True) as url:
        watch = ServerWatch(url, KEY)
        until(lambda: watch.seen.problem == "the stream ended")
        until(lambda: watch.seen.problem is None)


def test_a_url_has_a_scheme() -> None:
    with pytest.raises(RequestError, match="give a URL such as"):
        ServerWatch("127.0.0.1:8000")


def test_the_command_shows_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "status_folder", lambda: tmp_path)
    (tmp_path / "key").write_text(f"{KEY}\n")
    with serving(snapshot()) as url:
        result = CliRunner().invoke(command, ["--once", "--server", url, "--key-file", str(tmp_path / "key")])
    assert result.exit_code == 0, result.output
    for words in (
        "takes requests",
        "puppet",
        "running  1 of 2",
        "Of 10 prompt tokens 40.0% were reused",
        "The tier holds 4 KiB in 3 objects; 3 prompt tokens came from it. "
        "It no longer writes: cannot write: No space left on device.",
    ):
        assert " ".join(words.split()) in " ".join(result.output.split()), words

"""Servers that the bench starts: ready before they are used, measured whole, and gone after it."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import psutil
import pytest

from kvfold.pipeline.bench.serving.client.asks import Wanted, completion
from kvfold.pipeline.bench.serving.servers import started_server
from kvfold.pipeline.bench.serving.servers.kvfold_server import KvfoldOptions, kvfold_server
from kvfold.pipeline.bench.serving.servers.llama_server import LlamaServer
from kvfold.pipeline.bench.serving.servers.process_tree import MemoryLog, ProcessTree
from kvfold.pipeline.bench.serving.servers.server_metrics import ServerState, read_samples, read_state
from kvfold.pipeline.bench.serving.servers.started_server import RunningServer, ServerCommand, run_server
from kvfold.plugins.contract.errors import TargetError
from tests.pipeline.bench.serving.fake_openai_server import fake_command

READY = "/health/ready"
# A parent that burns CPU and holds memory only through its child.
WITH_CHILD = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", '''
import time
ballast = bytearray(64 << 20)
end = time.process_time() + 0.5
while time.process_time() < end: pass
print("done", flush=True)
time.sleep(60)
'''], stdout=subprocess.PIPE)
child.stdout.readline()
print("ready", flush=True)
time.sleep(60)
"""


def test_a_server_is_ready_when_it_is_used_and_gone_afterwards(tmp_path: Path) -> None:
    async def run() -> int:
        async with run_server(ServerCommand("fake", fake_command(), READY), tmp_path) as server:
            assert server.client.model == "fake"
            outcome = await server.client.send(completion("go", Wanted(3)), 0.0)
            assert outcome.completion_tokens == 3
            assert server.tree.cpu_seconds() > 0 and server.tree.rss_mib() > 1
            return server.process.pid

    assert not psutil.pid_exists(asyncio.run(run()))


def test_its_exit_code_is_told(tmp_path: Path) -> None:
    async def run() -> int | None:
        async with run_server(ServerCommand("fake", fake_command(), READY), tmp_path) as server:
            assert await server.exit_code(0.1) is None
            server.terminate()
            return await server.exit_code()

    assert asyncio.run(run()) == 0


def test_one_that_fails_tells_its_last_words(tmp_path: Path) -> None:
    command = (sys.executable, "-c", "import sys; print('no such bundle'); sys.exit(3)")

    async def run() -> None:
        async with run_server(ServerCommand("a b", command, READY), tmp_path):
            pass

    with pytest.raises(TargetError, match=r"(?s)a b ended with exit code 3:\nno such bundle"):
        asyncio.run(run())


def test_one_that_is_never_ready_is_given_up_and_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(started_server, "READY_SECONDS", 1.0)
    command = (sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(600)")

    async def run() -> None:
        async with run_server(ServerCommand("deaf", command, READY), tmp_path):
            pass

    with pytest.raises(TargetError, match="does not answer /health/ready with 200 after 1 s"):
        asyncio.run(run())
    (log,) = tmp_path.glob("deaf-*.log")
    assert not psutil.pid_exists(int(log.read_text()))


def test_children_count(tmp_path: Path) -> None:
    parent = psutil.Popen([sys.executable, "-c", WITH_CHILD], stdout=-1)
    try:
        assert parent.stdout.readline() == b"ready\n"
        tree = ProcessTree(parent.pid)
        assert tree.cpu_seconds() >= 0.5
        assert tree.rss_mib() > 64
        assert psutil.Process(parent.pid).memory_info().rss < 64 << 20
    finally:
        for process in (*parent.children(recursive=True), parent):
            process.kill()
        parent.wait()


def test_a_tree_that_is_gone_costs_nothing() -> None:
    process = psutil.Popen([sys.executable, "-c", ""])
    process.wait()
    assert ProcessTree(process.pid).cpu_seconds() == 0
    assert ProcessTree(process.pid).rss_mib() == 0


def test_a_memory_log_knows_its_spans() -> None:
    log = MemoryLog(ProcessTree(0), samples=[(0.5, 10.0, 1.0), (1.5, 20.0, 2.0), (2.5, 30.0, 3.0)])
    assert log.between(1.0, 2.5) == [20.0]
    assert log.between(0.0, 3.0) == [10.0, 20.0, 30.0]
    assert log.between(1.0, 3.0, own=True) == [2.0, 3.0]


def test_metrics_are_read_with_their_labels() -> None:
    text = (
        "# HELP kvfold:pool_pages Pages.\n# TYPE kvfold:pool_pages gauge\n"
        'kvfold:pool_pages{group="window",state="idle"} 3.0\n'
        'kvfold:pool_pages{group="global",state="idle"} 2.0\n'
        'kvfold:pool_pages{state="used",group="global"} 1.0\n'
        'vllm:num_requests_running{model_name="a \\"b\\"",engine="0"} 4.0\nvllm:num_requests_waiting 5.0\n'
    )
    assert read_state(text) == ServerState({"idle": 5, "used": 1}, running=4, waiting=5)
    assert next(s for s in read_samples(text) if s.value == 4).labels["engine"] == "0"
    with pytest.raises(TargetError, match="has no kvfold:pool_pages"):
        read_state("up 1\n")


@pytest.mark.parametrize(
    ("used", "running", "waiting", "at_rest"),
    [(0, 0, 0, True), (1, 0, 0, False), (0, 1, 0, False), (0, 0, 1, False)],
)
def test_rest_is_when_nobody_is_there(used: int, running: int, waiting: int, at_rest: bool) -> None:
    assert ServerState({"idle": 1, "used": used}, running, waiting).at_rest == at_rest


def test_commands_say_what_a_user_would_type() -> None:
    own = kvfold_server(Path("bundles/compact"), KvfoldOptions(64, 1 << 30, 2)).command
    assert own[own.index("serve") :][:2] == ("serve", "bundles/compact")
    assert "--max-num-seqs 64 --kv-cache-bytes 1073741824 --threads 2" in " ".join(own)
    peer = LlamaServer(Path("llama-server"), Path("model.gguf")).command(64, 1024, 2)
    assert "--parallel 64 --ctx-size 65536 --threads 2" in " ".join(peer.command)
    assert not peer.keeps_alive


def test_a_binary_that_is_no_llama_server_is_refused_with_how_to_build_one() -> None:
    with pytest.raises(TargetError, match=r"is no llama-server.*docs/commands.md"):
        LlamaServer(Path(sys.executable + "-absent"), Path("model.gguf")).version()


def test_one_that_ignores_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(started_server, "EXIT_SECONDS", 0.3)
    options = ServerCommand("stubborn", fake_command(stubborn=1), READY)

    async def run() -> RunningServer:
        async with run_server(options, tmp_path) as server:
            return server

    assert asyncio.run(run()).process.poll() == -signal.SIGKILL

"""A server that is killed, or told to end, and started again: its clients go on where they were."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.server.processes.spawned_server import ServerProcess

CHAT, RESPONSES, SESSIONS = "/v1/chat/completions", "/v1/responses", "/v1/kvfold/sessions"
GREEDY = {"temperature": 0, "max_tokens": 6}


class Talk:
    """A client with a session: it says again all that was said, as clients of this API do."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.messages: list[dict[str, str]] = []
        self.replies: list[str] = []
        self.usage: dict[str, Any] = {}

    def turn(self, server: ServerProcess) -> None:
        """One more turn, before the context is full; raises whatever tells that the server died in it."""
        if len(self.messages) > 20:
            self.messages = []
        asked = [*self.messages, {"role": "user", "content": f"{self.name} {len(self.replies)}"}]
        status, body = server.ask("POST", CHAT, {"messages": asked, **GREEDY}, {"x-session-id": self.name})
        assert status == 200, body
        answer = json.loads(body)
        said, self.usage = answer["choices"][0]["message"]["content"], answer["usage"]
        self.replies.append(said)
        self.messages = [*asked, {"role": "assistant", "content": said}]


def view(server: ServerProcess, name: str) -> dict[str, Any]:
    status, body = server.ask("GET", f"{SESSIONS}/{name}")
    return json.loads(body) if status == 200 else {"turns": 0, "tokens": 0}


def respond(server: ServerProcess, text: str, previous: str | None) -> dict[str, Any]:
    body = {"input": text, "previous_response_id": previous, "temperature": 0, "max_output_tokens": 6}
    status, answer = server.ask("POST", RESPONSES, body)
    assert status == 200, answer
    found: dict[str, Any] = json.loads(answer)
    return found


def metrics(server: ServerProcess) -> str:
    return server.ask("GET", "/metrics")[1].decode()


def queued(server: ServerProcess) -> bool:
    """Whether pages wait to be written."""
    return 'kvfold:tier_bytes{state="queued"} 0.0' not in metrics(server)


def end(server: ServerProcess, number: int) -> None:
    os.kill(server.popen.pid, number)
    server.popen.wait(60)


def test_sessions_and_responses_go_on_after_a_kill_and_after_a_deploy(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    unkilled, server = ServerProcess(tmp_path / "a"), ServerProcess(tmp_path / "b")
    try:
        alive, other = Talk("s"), Talk("s")
        last: list[str | None] = [None, None]
        for number in (signal.SIGKILL, signal.SIGTERM, None):
            for _ in range(2):
                alive.turn(unkilled)
                other.turn(server)
                replies = [
                    respond(one, "Go on", at) for one, at in zip((unkilled, server), last, strict=True)
                ]
                assert replies[0]["usage"]["input_tokens"] == replies[1]["usage"]["input_tokens"]
                assert replies[0]["output"][0]["content"] == replies[1]["output"][0]["content"]
                last = [reply["id"] for reply in replies]
            assert alive.replies == other.replies
            facts = [view(one, "s") for one in (unkilled, server)]
            for what in ("turns", "tokens", "rematched"):
                assert facts[0][what] == facts[1][what]
            if number is not None:
                end(server, number)
                server = ServerProcess(tmp_path / "b")
        assert server.ask("DELETE", f"{SESSIONS}/s")[0] == 200
        assert "Go on" not in server.log and other.replies[0] not in server.log
    finally:
        for one in (unkilled, server):
            one.popen.kill()
            one.popen.wait()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_conversation_costs_its_new_tokens_after_the_server_s_end(tmp_path: Path, number: int) -> None:
    server = ServerProcess(tmp_path)
    try:
        talk = Talk("s")
        for _ in range(4):
            talk.turn(server)
        known = talk.usage["prompt_tokens"] + talk.usage["completion_tokens"]
        while number == signal.SIGKILL and queued(server):  # SIGTERM waits for that itself
            time.sleep(0.01)
        end(server, number)
        server = ServerProcess(tmp_path)
        talk.turn(server)
        cached = talk.usage["prompt_tokens_details"]["cached_tokens"]
        assert cached > known - 2 * 16, "all pages of what was said, but for the last token's"
        assert re.search(rf"^kvfold:loaded_tokens_total {cached}.0$", metrics(server), re.M)
    finally:
        server.popen.kill()
        server.popen.wait()


def test_a_kill_under_load_costs_a_session_at_most_the_turn_that_ran(tmp_path: Path) -> None:
    draw = random.Random(1)
    talks = [Talk(f"t{at}") for at in range(6)]
    unheard = dict.fromkeys(talks, 0)
    server = ServerProcess(tmp_path)
    try:
        for _ in range(2):
            over = threading.Event()

            def talk(one: Talk, server: ServerProcess, over: threading.Event) -> None:
                while not over.is_set():
                    try:
                        one.turn(server)
                    except (
                        Exception
                    ):  # the server died in it, in one of the many ways that a socket tells that
                        if not over.is_set():
                            raise
                        return

            threads = [threading.Thread(target=talk, args=(one, server, over)) for one in talks]
            for thread in threads:
                thread.start()
            time.sleep(draw.uniform(0.3, 1.0))
            over.set()
            end(server, signal.SIGKILL)
            for thread in threads:
                thread.join()
            server = ServerProcess(tmp_path)
            for one in talks:
                assert view(server, one.name)["turns"] - len(one.replies) - unheard[one] in (0, 1)
                one.turn(server)  # says the turn that ran again where its reply never came
                unheard[one] = view(server, one.name)["turns"] - len(one.replies)
        assert sum(len(one.replies) for one in talks) > len(talks) * 4
    finally:
        server.popen.kill()
        server.popen.wait()

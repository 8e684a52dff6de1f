"""A whole server with keys: what tenants see of one another, and strangers of anything."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Iterator
from time import sleep
from typing import Any

import pytest

from tests.runtime.server.abuse.valid_requests import VALID
from tests.runtime.server.processes.spawned_server import ServerProcess, real_server

NAMES = ("alice", "bob", "boss")
CHAT, RESPONSES, SESSIONS = "/v1/chat/completions", "/v1/responses", "/v1/kvfold/sessions"
ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": "a secret " * 20}], "max_tokens": 4}


class Tenants:
    """A server, asked with one key or another."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server

    def ask(
        self, name: str, method: str, path: str, value: Any = None, **headers: str
    ) -> tuple[int, dict[str, Any]]:
        key = {"authorization": f"Bearer key of {name}"}
        status, body = self.server.ask(method, path, value, {**key, **headers})
        found: dict[str, Any] = json.loads(body)
        return status, found

    def cached(self, name: str, **headers: str) -> int:
        status, answer = self.ask(name, "POST", CHAT, ASKED, **headers)
        assert status == 200, answer
        found: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        return found


@pytest.fixture(scope="module")
def tenants(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tenants]:
    folder = tmp_path_factory.mktemp("server")
    entries = [
        {
            "name": name,
            "sha256": hashlib.sha256(f"key of {name}".encode()).hexdigest(),
            "roles": ["admin" if name == "boss" else "inference"],
        }
        for name in NAMES
    ]
    (folder / "keys.json").write_text(json.dumps({"keys": entries}))
    with real_server(folder, folder / "keys.json") as server:
        yield Tenants(server)


@pytest.mark.parametrize("key", [{}, {"authorization": "Bearer key of eve"}, {"x-api-key": ""}])
def test_a_stranger_is_told_nothing(tenants: Tenants, key: dict[str, str]) -> None:
    told = {
        (path, tenants.server.ask(method, path, body, key)[0])
        for method, path, body in [*VALID, ("GET", "/nowhere", None), ("PATCH", CHAT, None)]
    }
    assert {path for path, status in told if status != 401} == {"/health/live"}


def test_another_tenant_s_prompt_is_computed_anew(tenants: Tenants) -> None:
    assert tenants.cached("alice") == 0
    assert tenants.cached("alice") > 0
    assert tenants.cached("bob") == 0
    assert tenants.cached("boss") == 0


def test_a_session_of_the_same_name_is_another_one(tenants: Tenants) -> None:
    for name in ("alice", "bob"):
        tenants.cached(name, **{"x-session-id": "mine"})
    assert tenants.ask("alice", "DELETE", f"{SESSIONS}/mine")[0] == 200
    assert tenants.ask("alice", "GET", f"{SESSIONS}/mine")[0] == 404
    assert tenants.ask("bob", "GET", f"{SESSIONS}/mine")[1]["turns"] == 1
    assert tenants.ask("bob", "GET", SESSIONS)[1]["data"][0]["tenant"] == "bob"
    assert tenants.ask("boss", "GET", SESSIONS)[1]["data"][0]["tenant"] == "bob"
    assert tenants.ask("bob", "DELETE", f"{SESSIONS}/mine")[0] == 200


def test_a_response_is_there_for_its_tenant_only(tenants: Tenants) -> None:
    _, made = tenants.ask("alice", "POST", RESPONSES, {"input": "a", "max_output_tokens": 2})
    path = f"{RESPONSES}/{made['id']}"
    after = {"input": "b", "previous_response_id": made["id"], "max_output_tokens": 2}
    for name in ("bob", "boss"):
        assert tenants.ask(name, "GET", path)[0] == 404
        assert tenants.ask(name, "DELETE", path)[0] == 404
        assert tenants.ask(name, "POST", f"{path}/cancel")[0] == 404
        assert tenants.ask(name, "POST", RESPONSES, after)[0] == 400
    assert tenants.ask("alice", "GET", path)[0] == 200


def test_a_running_request_is_seen_and_cancelled_by_its_tenant_or_an_admin_only(tenants: Tenants) -> None:
    body = json.dumps({"prompt": "a", "max_tokens": 2040, "stream": True, "ignore_eos": True}).encode()
    head = (
        b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
        b"authorization: Bearer key of alice\r\ncontent-length: %d\r\n\r\n" % len(body)
    )
    with socket.create_connection(("127.0.0.1", tenants.server.port), timeout=30) as client:
        client.sendall(head + body)
        client.recv(4096)
        while not (seen := tenants.ask("alice", "GET", "/v1/kvfold/requests")[1]["data"]):
            sleep(0.01)  # it is told a few times a second
        (running,) = seen
        assert tenants.ask("bob", "GET", "/v1/kvfold/requests")[1]["data"] == []
        path = f"/v1/kvfold/requests/{running['id']}"
        assert tenants.ask("bob", "DELETE", path)[0] == 404
        assert tenants.ask("boss", "GET", "/v1/kvfold/requests")[1]["data"][0]["tenant"] == "alice"
        assert tenants.ask("boss", "DELETE", path)[0] == 200
        said = b""
        while part := client.recv(65536):
            said += part
            if said.endswith(b"0\r\n\r\n"):
                break
    assert b"cancelled" in said


def test_a_key_of_one_role_opens_no_other_door(tenants: Tenants) -> None:
    assert tenants.ask("alice", "GET", "/version")[0] == 200
    status, _ = tenants.server.ask("GET", "/metrics", None, {"authorization": "Bearer key of alice"})
    assert status == 403

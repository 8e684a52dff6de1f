"""Keys, roles and limits: who gets in."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kvfold.plugins.contract.errors import RequestError
from kvfold.runtime.server.caller import NOBODY
from kvfold.runtime.server.guard import key_file
from kvfold.runtime.server.guard.body_budget import BodyBudget
from kvfold.runtime.server.guard.gate import Gate
from kvfold.runtime.server.guard.key_file import read_keys
from kvfold.runtime.server.http import HttpError, Request
from kvfold.runtime.server.start.server_settings import ServerSettings
from tests.runtime.server.asgi_client import JSON, Exchange, ask, until
from tests.runtime.server.puppet_llm import PuppetLLM
from tests.runtime.server.served import make_server


def entry(name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "sha256": hashlib.sha256(f"key of {name}".encode()).hexdigest(), **fields}


KEYS = [
    entry("alice", tenant="research", max_concurrent=1),
    entry("bob", roles=["metrics"]),
    entry("root", roles=["admin"]),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "keys.json", KEYS)


def write(path: Path, keys: Any) -> Path:
    path.write_text(json.dumps({"keys": keys}))
    return path


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer key of {name}"}


def ask_all(path: Path | None, *questions: tuple[str, str, dict[str, str]]) -> list[Any]:
    async def call() -> list[Any]:
        app, _ = make_server(PuppetLLM(), path)
        return [await ask(app, method, where, {}, headers) for method, where, headers in questions]

    return asyncio.run(call())


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer"},
        {"authorization": "Bearer key of mallory"},
        {"authorization": "Basic key of alice"},
        {"authorization": "Bearer key of alice2"},
        {"x-api-key": ""},
        {"x-api-key": "\xff\xfe"},
    ],
)
def test_without_a_known_key_all_is_401_but_that_it_lives(path: Path, headers: dict[str, str]) -> None:
    paths = ["/say", "/things/1", "/health", "/health/ready", "/metrics", "/version", "/nothing"]
    for answer in ask_all(path, *(("GET", where, headers) for where in paths)):
        assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
        assert answer.headers["www-authenticate"] == "Bearer"
    (live,) = ask_all(path, ("GET", "/health/live", headers))
    assert live.json() == {"status": "live"}


def test_an_entry_for_nobody_lets_probes_see_readiness_and_nothing_else(path: Path) -> None:
    nobody = {"name": "probes", "sha256": hashlib.sha256(b"").hexdigest(), "roles": ["probe"]}
    write(path, [*KEYS, nobody])
    (ready,) = ask_all(path, ("GET", "/health/ready", {}))
    assert (ready.status, ready.json()) == (200, {"status": "ready"})
    for where in ("/health", "/metrics", "/version", "/things/1", "/nothing"):
        (answer,) = ask_all(path, ("GET", where, {}))
        assert answer.status == 403, where
    (known,) = ask_all(path, ("GET", "/health/ready", bearer("alice")))
    assert known.status == 200


@pytest.mark.parametrize(
    ("keyed", "name"), [(True, b"authorization"), (True, b"x-api-key"), (False, b"host")]
)
def test_a_header_that_says_who_asks_comes_once(path: Path, keyed: bool, name: bytes) -> None:
    """A proxy may check the one and we the other."""
    value = b"localhost" if name == b"host" else b"Bearer key of alice"
    scope = {"method": "GET", "path": "/", "headers": [(name, value), (name, value)]}
    with pytest.raises(HttpError, match=f"{name.decode()} came more than once") as refused:
        Gate(path if keyed else None).enter(
            Request(scope, silent, "id", NOBODY, BodyBudget(print).resize), "any key"
        )
    assert refused.value.status == 400


async def silent() -> Any:
    raise AssertionError("nobody reads the body")


def test_a_key_brings_its_tenant_in_either_header(path: Path) -> None:
    first, second, third = ask_all(
        path,
        ("GET", "/things/1", bearer("alice")),
        ("GET", "/things/1", {"x-api-key": "key of alice"}),
        ("GET", "/things/1", bearer("root")),
    )
    assert first.json()["tenant"] == second.json()["tenant"] == "research"
    assert third.json()["tenant"] == "root"


def test_a_role_opens_its_routes_and_an_admin_all(path: Path) -> None:
    def statuses(name: str) -> list[int]:
        questions = [("GET", "/metrics"), ("GET", "/things/1"), ("DELETE", "/things/1"), ("GET", "/health")]
        return [a.status for a in ask_all(path, *((m, where, bearer(name)) for m, where in questions))]

    assert statuses("alice") == [403, 200, 403, 200]
    assert statuses("bob") == [200, 403, 403, 200]
    assert statuses("root") == [200, 200, 200, 200]


def test_a_key_has_as_many_requests_inside_as_it_may(path: Path) -> None:
    async def call() -> None:
        llm = PuppetLLM()
        app, _ = make_server(llm, path)
        llm.go.clear()
        first = Exchange(app, "POST", "/say", b"{}", {**JSON, **bearer("alice")})
        await until(lambda: llm.replies)
        refused = await ask(app, "POST", "/say", {}, bearer("alice"))
        assert (refused.status, refused.headers["retry-after"]) == (429, "1")
        llm.go.set()
        assert (await first.end()).status == 200
        assert (await ask(app, "POST", "/say", {}, bearer("alice"))).status == 200

    asyncio.run(call())


def test_a_new_file_counts_after_a_reload_and_a_bad_one_does_not(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def call() -> None:
        app, state = make_server(PuppetLLM(), path)

        async def status(name: str) -> int:
            return (await ask(app, "GET", "/health", headers=bearer(name))).status

        write(path, [entry("carol")])
        assert [await status("alice"), await status("carol")] == [200, 401]
        state.gate.reload()
        assert [await status("alice"), await status("carol")] == [401, 200]
        path.write_text("{")
        state.gate.reload()
        assert [await status("alice"), await status("carol")] == [401, 200]
        assert "the keys from before stay" in caplog.text

    asyncio.run(call())


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ([], "there is none"),
        ([entry("a"), entry("a")], "the same name"),
        ([entry("a"), {**entry("b"), "sha256": entry("a")["sha256"]}], "the same sha256"),
        ([{**entry("a"), "sha256": "abc"}], "64 hex digits"),
        ([entry("a", tenant="")], "tenant of 'a' is empty"),
        ([entry("a", roles=[])], "no roles"),
        ([entry("a", roles=["root"])], "roles"),
        ([entry("a", max_concurrent=0)], "at least 1"),
        ([entry("a", rols=[])], "rols"),
        ([entry("a\nb")], "a name is"),
        ("none", "keys"),
    ],
)
def test_a_file_that_is_not_right_says_why(tmp_path: Path, keys: Any, said: str) -> None:
    with pytest.raises(RequestError, match=re.escape(said)):
        read_keys(write(tmp_path / "keys.json", keys))


def test_no_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="cannot be read"):
        read_keys(tmp_path / "none.json")


def test_the_documented_line_makes_a_key_that_is_known(tmp_path: Path) -> None:
    line = next(line for line in (key_file.__doc__ or "").splitlines() if "openssl" in line)
    said = subprocess.run(line, shell=True, capture_output=True, text=True, check=True).stdout.split()
    keys = read_keys(write(tmp_path / "keys.json", [{"name": "new", "sha256": said[1]}]))
    found = keys.find(said[0])
    assert found is not None and found.name == "new"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "10.0.0.1", "[2001:db8::1]:80", ""])
def test_without_keys_a_foreign_name_of_the_host_is_refused(host: str) -> None:
    assert ask_all(None, ("GET", "/things/1", {"host": host}))[0].status == 403


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1", "127.8.8.8:1", "[::1]:8000"])
def test_without_keys_this_machine_is_served(host: str) -> None:
    assert ask_all(None, ("GET", "/things/1", {"host": host}))[0].status == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.com", ""])
def test_an_open_address_needs_keys(host: str) -> None:
    with pytest.raises(RequestError, match="--keys"):
        ServerSettings(host=host)
    assert ServerSettings(host=host, keys=Path("keys.json")).host == host


def test_settings_out_of_range_are_refused() -> None:
    for wrong in ({"port": 65536}, {"port": -1}, {"drain_seconds": -1}, {"max_waiting": -1}):
        with pytest.raises(RequestError):
            ServerSettings(**wrong)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="--tls-key"):
        ServerSettings(tls_cert=Path("cert.pem"))

"""What a relay reads of requests."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kvfold.runtime.cluster.placement import Asked, Standing, rank_replicas
from kvfold.runtime.cluster.read_route import read_route
from kvfold.runtime.server.http import HttpError
from kvfold.runtime.server.relayed import RELAY_FIELD

CHAT = "/v1/chat/completions"


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def key(value: Any, path: str = CHAT, **headers: str) -> int:
    return read_route("POST", path, headers, json.dumps(value).encode()).key


def test_a_conversation_has_one_key_however_long_it_gets() -> None:
    begin = [{"role": "system", "content": "be brief"}, user("hello")]
    grown = [*begin, {"role": "assistant", "content": "hi"}, user("and?")]
    assert key({"messages": begin}) == key({"messages": grown, "temperature": 1})
    assert key({"messages": begin}) != key({"messages": [begin[0], user("other")]})


def test_a_session_has_one_key_however_it_is_named() -> None:
    of_header = key({"messages": [user("a")]}, **{"x-session-id": "s"})
    assert of_header == key({"messages": [user("b")], "session_id": "s"})
    assert of_header == read_route("GET", "/v1/kvfold/sessions/s", {}, b"").key
    assert of_header == key({"session_id": "s"}, "/v1/kvfold/sessions")


def test_keys_of_two_tenants_differ() -> None:
    assert key({"messages": [user("a")]}, authorization="Bearer one") != key(
        {"messages": [user("a")]}, authorization="Bearer two"
    )


def test_a_new_session_is_named_by_the_relay_which_knows_it_again() -> None:
    read = read_route("POST", "/v1/kvfold/sessions", {}, b"")
    name = json.loads(read.body)["session_id"]
    assert read.key == read_route("DELETE", f"/v1/kvfold/sessions/{name}", {}, b"").key


def test_a_response_leads_back_to_its_replica() -> None:
    read = read_route("POST", "/v1/responses", {}, b'{"input": "hi"}')
    assert read.relayed is not None
    name = f"resp_{read.relayed.id}"
    assert read.key == read_route("GET", f"/v1/responses/{name}", {}, b"").key
    assert read.key == read_route("POST", f"/v1/responses/{name}/cancel", {}, b"").key
    assert read.key == key({"input": "and?", "previous_response_id": name}, "/v1/responses")


@pytest.mark.parametrize(
    "body", [b'{"messages": []}', b' {"a":1} \n', b"{}", b'{"kvfold_relay": {"id": "x"}}']
)
def test_the_relays_field_counts_in_every_body(body: bytes) -> None:
    read = read_route("POST", CHAT, {}, body)
    assert read.relayed is not None
    sent = json.loads(read.body_for(read.relayed))
    assert sent[RELAY_FIELD]["id"] == read.relayed.id and sent[RELAY_FIELD]["said"] is None
    assert {name: sent[name] for name in json.loads(body) if name != RELAY_FIELD} == {
        name: value for name, value in json.loads(body).items() if name != RELAY_FIELD
    }


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'"x"', b"\xff", b"[" * 9999])
def test_what_makes_no_sense_is_left_to_a_replica(body: bytes) -> None:
    read = read_route("POST", CHAT, {}, body)
    assert read.body_for(read.relayed if body else None) == body or read.relayed is None


@pytest.mark.parametrize(
    "body",
    [
        *(b'{"messages": 5}', b'{"session_id": 5}', b'{"previous_response_id": [1]}', b'{"stream": {}}'),
        *(b'{"messages": [{"role": "\xff"}]}', b'{"messages": [{"role": [[]]}, 7]}'),
    ],
)
def test_whatever_a_body_holds_the_client_speaks_for_no_relay(body: bytes) -> None:
    """A replica may not look at the field that is odd, and reads the rest."""
    liar = body[:-1] + b', "kvfold_relay": {"id": "x"}}'
    read = read_route("POST", CHAT, {}, liar)
    assert read.relayed is not None and 0 <= read.key < 2**64
    sent = json.loads(read.body_for(read.relayed).decode("latin-1"))
    assert sent[RELAY_FIELD]["id"] == read.relayed.id
    with pytest.raises(HttpError, match="nested too deeply"):
        read_route("POST", CHAT, {}, b'{"a": ' + b"[" * 9999)


@pytest.mark.parametrize("name", ["resp_-1", "-1", "resp_+1", "resp_0x1", "resp_1_0", "", "resp_", "é"])
def test_any_name_of_a_response_leads_somewhere(name: str) -> None:
    wanted = read_route("GET", f"/v1/responses/{name}", {}, b"").key
    named = key({"input": "and?", "previous_response_id": name or "x"}, "/v1/responses")
    assert rank_replicas(Asked(wanted, 1), [Standing("one")], None) == ["one"]
    assert rank_replicas(Asked(named, 1), [Standing("one")], None) == ["one"]


def test_messages_without_a_user_and_of_odd_kinds_have_a_key() -> None:
    assert key({"messages": [1, None, {"role": 5}]}) != key({"messages": [2]})

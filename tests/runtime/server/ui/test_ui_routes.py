"""The page's files: without secrets, without foreign hosts, without markup that a policy forbids."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from urllib.parse import urljoin

import pytest

from kvfold.runtime.server.ui import ui_routes
from tests.runtime.server.asgi_client import Answer, ask
from tests.runtime.server.guard.test_gate import KEYS, write
from tests.runtime.server.ui.watched import make_app

FILES = {"/ui": "text/html", **{f"/ui/{name}": kind for name, kind in ui_routes.ASSETS.items()}}


def get(path: str, keys: Path | None = None) -> Answer:
    app, _ = make_app(keys)
    return asyncio.run(ask(app, "GET", path))


@pytest.mark.parametrize(("path", "kind"), FILES.items())
def test_everybody_may_read_the_page_while_the_model_loads(path: str, kind: str, tmp_path: Path) -> None:
    answer = get(path, write(tmp_path / "keys.json", KEYS))
    assert answer.status == 200 and answer.headers["content-type"] == f"{kind}; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'self';") and "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy and answer.headers["x-content-type-options"] == "nosniff"


def test_a_slash_at_the_end_leads_to_the_page_whose_files_are_named_from_there() -> None:
    answer = get("/ui/")
    assert answer.status == 308 and answer.body == b""
    for place in ("http://here/ui/", "http://here/below/a/proxy/ui/"):
        assert urljoin(place, answer.headers["location"]) == place.rstrip("/")


@pytest.mark.parametrize("path", FILES)
def test_no_file_names_another_host(path: str) -> None:
    text = get(path).body.decode()
    assert set(re.findall(r"https?://[^\s\"'<>]+", text)) <= {"http://www.w3.org/2000/svg"}
    assert "//cdn" not in text and "@import" not in text


def test_nothing_in_the_page_is_inline() -> None:
    page = get("/ui").body.decode()
    assert re.findall(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", page) == []
    linked = set(re.findall(r'(?:src|href)="(ui/[^"]+)"', page))
    assert linked == {f"ui/{name}" for name in ui_routes.ASSETS}


def test_texts_never_become_markup() -> None:
    script = get("/ui/page.js").body.decode()
    assert (
        re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", script)
        == []
    )


def test_what_the_script_looks_for_is_in_the_page() -> None:
    page, script = get("/ui").body.decode(), get("/ui/page.js").body.decode()
    ids, stats = set(re.findall(r'\bid="([^"]+)"', page)), set(re.findall(r'data-stat="([^"]+)"', page))
    assert set(re.findall(r'byId\("([^"]+)"\)', script)) <= ids
    told = set(re.findall(r'\bstat\(\s*"([^"]+)"', script))
    assert told <= stats and stats - told == {
        f"{what}-{which}" for what in ("first", "between") for which in ("p50", "p95", "p99", "count")
    }

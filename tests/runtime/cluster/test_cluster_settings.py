"""Settings of a cluster, as texts of a command line."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kvfold.plugins.contract.errors import BundleError, MissingExtraError, RequestError
from kvfold.runtime.cluster import build
from kvfold.runtime.cluster import build_cluster as module
from kvfold.runtime.cluster.cluster_settings import read_cluster_settings
from kvfold.runtime.cluster.scale_by_tokens import ScaleByTokens
from kvfold.runtime.cluster.served_replica import load_bundle
from kvfold.runtime.runtime_config import RuntimeConfig
from kvfold.runtime.server.start import load_served as load_served_module
from kvfold.runtime.server.start.kept_pages import kept_pages
from kvfold.runtime.server.start.server_settings import ServerSettings


def test_texts_become_values() -> None:
    settings = read_cluster_settings(
        {"bundle": "some/compact", "replicas": "2", "max_replicas": "8", "kv_cache_bytes": "1048576"}
    )
    assert settings.name == "compact" and settings.bundle == Path("some/compact")
    assert (settings.replicas, settings.max_replicas) == (2, 8)
    assert settings.engine == {"kv_cache_bytes": 1048576}


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({}, "bundle"),
        ({"bundle": "x", "replica": "2"}, "replica"),
        ({"bundle": "x", "replicas": "0"}, "replicas"),
        ({"bundle": "x", "replicas": "3", "max_replicas": "2"}, "max_replicas"),
        ({"bundle": "x", "drain_seconds": "-1"}, "drain_seconds"),
        ({"bundle": "x", "kv_tier_bytes": "-1"}, "kv_tier_bytes"),
        ({"bundle": "x", "kv_tier": "pages"}, "kv_tier"),
    ],
)
def test_what_is_wrong_is_named(given: dict[str, str], word: str) -> None:
    with pytest.raises(RequestError, match=word):
        read_cluster_settings(given)


def test_a_replica_keeps_its_pages_where_kvfold_serve_keeps_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, Any]] = []

    def load_served(root: Path, target: str, engine: dict[str, Any]) -> tuple[Any, None]:
        given.append(engine)
        return SimpleNamespace(llm=SimpleNamespace(config=RuntimeConfig())), None

    monkeypatch.setattr(load_served_module, "load_served", load_served)
    texts = {"bundle": "x", "state_dir": str(tmp_path), "kv_tier_bytes": "4096", "kv_host_bytes": "512"}
    load_bundle(read_cluster_settings(texts))
    load_bundle(read_cluster_settings({"bundle": "x"}))
    kept = kept_pages(ServerSettings(state_dir=tmp_path, kv_tier_bytes=4096))
    assert given == [{"kv_host_bytes": 512, **kept}, {}] and kept["kv_tier"].is_dir()


def test_without_ray_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "ray" else name)
    with pytest.raises(MissingExtraError, match=r"kvfold\[serve,ray\]"):
        build({"bundle": "x"})


def test_a_replica_without_the_bundle_says_so(tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        load_bundle(read_cluster_settings({"bundle": str(tmp_path / "absent")}))


@pytest.mark.parametrize(
    ("waiting", "replies", "wanted"),
    [([], [], 1), ([0, 0], [1, 0], 1), ([9000, 3000], [2, 2], 3), ([0, 0], [64, 40], 2), ([1, 0], [0, 0], 1)],
)
def test_replicas_follow_the_tokens_that_wait_and_the_replies_that_run(
    waiting: list[int], replies: list[int], wanted: int
) -> None:
    told = {"waiting_tokens": dict(enumerate(waiting)), "replies": dict(enumerate(replies))}
    context: Any = SimpleNamespace(aggregated_metrics=told)
    assert ScaleByTokens(waiting_tokens=4096, replies=64)(context) == (wanted, {})

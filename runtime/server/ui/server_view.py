"""A server as values for JSON, as the page and `kvfold monitor` show them, within a caller's roles."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import psutil

from kvfold.plugins.contract.version import VERSION
from kvfold.runtime.loop.snapshot import LoopSnapshot, RequestView
from kvfold.runtime.metrics import PrefixMatch
from kvfold.runtime.server.caller import Caller
from kvfold.runtime.server.counts.history import Point, Speed
from kvfold.runtime.server.counts.recent_replies import EndedReply
from kvfold.runtime.server.state import ServerState
from kvfold.runtime.server.ui.why import why

MINUTES = (1, 5, 60)
PROCESS = psutil.Process()


def sees_all_tenants(caller: Caller) -> bool:
    """Whether requests, sessions and prefixes of other tenants are its business."""
    return "admin" in caller.roles


def sees_whole_server(caller: Caller) -> bool:
    """Whether it may know what all tenants together do, as from `/metrics`."""
    return bool(caller.roles & {"admin", "metrics"})


class ServerView:
    """One caller's view of a server; lists bring what is new since the last look."""

    def __init__(self, state: ServerState, caller: Caller) -> None:
        """Nothing was looked at yet."""
        self._state = state
        self._caller = caller
        self._last_ended = 0
        self._last_point = 0.0

    def values(self) -> dict[str, Any]:
        """How the server stands now; parts that the caller may not see are null."""
        llm = self._state.loaded_llm
        snapshot = None if llm is None else llm.snapshot()
        whole = sees_whole_server(self._caller)
        return {
            "at": time.time(),
            "server": self._server(),
            "load": self._load(snapshot),
            "counts": self._counts() if whole else None,
            "speed": self._speed(snapshot) if whole else None,
            "cache": self._cache(snapshot) if whole else None,
            "tier": self._tier() if whole else None,
            "requests": self._requests(snapshot),
            "ended": self._ended(),
            "history": self._history() if whole else None,
        }

    def _server(self) -> dict[str, Any]:
        state = self._state
        llm = state.loaded_llm
        return {
            "model": state.model_name,
            "version": VERSION,
            "uptime_seconds": time.time() - state.started,
            "problem": state.why_not_ready(),
            "step_age_seconds": state.step_age(),
            "memory_bytes": PROCESS.memory_info().rss if sees_whole_server(self._caller) else None,
            "page_size": None if llm is None else llm.page_size,
            "max_length": None if llm is None else llm.max_length,
            "tenant": self._caller.tenant,
            "sees_all_tenants": sees_all_tenants(self._caller),
            "sees_whole_server": sees_whole_server(self._caller),
        }

    def _load(self, snapshot: LoopSnapshot | None) -> dict[str, Any]:
        admission = self._state.admission
        return {
            "busy": snapshot is not None and snapshot.busy,
            "running": 0 if snapshot is None else snapshot.running,
            "waiting": 0 if snapshot is None else snapshot.waiting,
            "waiting_tokens": 0 if snapshot is None else snapshot.waiting_tokens,
            "max_running": admission.limits.max_running,
            "max_waiting": admission.limits.max_waiting,
        }

    def _counts(self) -> dict[str, Any]:
        metrics = self._state.metrics
        return {
            "ends": dict(metrics.ends),
            "cancelled": dict(metrics.cancelled),
            "refusals": dict(metrics.refusals),
            "prompt_tokens": metrics.prompt_tokens,
            "reply_tokens": metrics.reply_tokens,
            "unread_characters": self._state.sweep.unread(),
        }

    def _cache(self, snapshot: LoopSnapshot | None) -> dict[str, Any] | None:
        llm = self._state.loaded_llm
        if snapshot is None or llm is None:
            return None
        return _cache(snapshot, self._state.history.saved_seconds(snapshot))

    def _tier(self) -> dict[str, Any] | None:
        llm = self._state.loaded_llm
        return None if llm is None or (tier := llm.tier_stats) is None else asdict(tier)

    def _speed(self, snapshot: LoopSnapshot | None) -> dict[str, Any]:
        of_minutes = {
            str(minutes): _speed(self._state.history.speed(60 * minutes, snapshot)) for minutes in MINUTES
        }
        return {
            "minutes": of_minutes,
            "engine_prefill_rate": 0 if snapshot is None else snapshot.prefill_rate,
            "engine_decode_rate": 0 if snapshot is None else snapshot.decode_rate,
        }

    def _requests(self, snapshot: LoopSnapshot | None) -> list[dict[str, Any]]:
        llm = self._state.loaded_llm
        if snapshot is None or llm is None:
            return []
        now = time.monotonic()
        found = sorted(snapshot.requests, key=lambda view: view.submitted)
        return [_request(view, now, llm.page_size) for view in found if self._may_see(view.tenant)]

    def _ended(self) -> list[dict[str, Any]]:
        llm = self._state.loaded_llm
        ended = self._state.metrics.recent.after(self._last_ended)
        if not ended or llm is None:
            return []
        self._last_ended = ended[-1].number
        now, clock = time.time(), time.monotonic()
        return [
            _ended_reply(reply, now - (clock - reply.clock), llm.page_size)
            for reply in ended
            if self._may_see(reply.tenant)
        ]

    def _history(self) -> dict[str, Any]:
        points = self._state.history.after(self._last_point)
        if points:
            self._last_point = points[-1].at
        return {"fields": Point._fields, "points": points}

    def _may_see(self, tenant: str) -> bool:
        return tenant == self._caller.tenant or sees_all_tenants(self._caller)


def _speed(speed: Speed) -> dict[str, Any]:
    return {
        **speed._asdict(),
        "first_token": speed.first_token._asdict(),
        "between_tokens": speed.between_tokens._asdict(),
    }


def _cache(snapshot: LoopSnapshot, saved_seconds: float) -> dict[str, Any]:
    return {
        **asdict(snapshot.metrics.cache),
        "saved_seconds": saved_seconds,
        "evicted_pages": snapshot.metrics.evicted_pages,
        "kv_cache_bytes": snapshot.metrics.kv_cache_bytes,
        "free_bytes": snapshot.metrics.free_bytes,
        "pools": [
            {
                "group": group,
                "idle": pool.idle,
                "in_use": pool.in_use,
                "page_bytes": pool.page_bytes,
            }
            for group, pool in snapshot.metrics.pools.items()
        ],
    }


def _request(view: RequestView, now: float, page_size: int) -> dict[str, Any]:
    return {
        "id": str(view.id),
        "tenant": view.tenant,
        "state": view.state,
        "completion_tokens": view.completion_tokens,
        "age_seconds": now - view.submitted,
        "first_token_seconds": None if view.first_token is None else view.first_token - view.submitted,
        **_reuse(view.prompt_tokens, view.match, page_size),
    }


def _ended_reply(reply: EndedReply, at: float, page_size: int) -> dict[str, Any]:
    usage = reply.usage
    return {
        "id": str(reply.id),
        "tenant": reply.tenant,
        "reason": reply.reason,
        "at": at,
        "seconds": reply.seconds,
        "queued_seconds": usage.queued_seconds,
        "first_token_seconds": usage.time_to_first_token,
        "completion_tokens": usage.completion_tokens,
        "recomputed_tokens": usage.recomputed_tokens,
        **_reuse(usage.prompt_tokens, usage.match, page_size),
    }


def _reuse(prompt_tokens: int, match: PrefixMatch | None, page_size: int) -> dict[str, Any]:
    found = match or PrefixMatch()
    return {
        "prompt_tokens": prompt_tokens,
        "matched_tokens": found.matched_tokens,
        "reused_tokens": found.hit_tokens,
        "gone": found.gone,
        "resumed": found.resumed,
        "why": why(prompt_tokens, match, page_size),
    }

"""A server's snapshot as tables: the numbers that its page shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kvfold.pipeline.show.table import Cell, Table
from kvfold.plugins.contract.byte_sizes import format_bytes

Values = Mapping[str, Any]
MINUTES = "5"
MOST_REQUESTS = 10


def server_tables(url: str, snapshot: Values) -> tuple[Table, ...]:
    """Health, speed, cache, requests, and why the last were computed, as far as the key may see."""
    found = [_health(url, snapshot)]
    if snapshot["speed"]:
        found.append(_speed(snapshot["speed"]))
    if snapshot["cache"]:
        found.append(_cache(snapshot["cache"], snapshot["tier"]))
    if snapshot["requests"]:
        found.append(_requests(snapshot["requests"]))
    if snapshot["ended"]:
        found.append(_ended(snapshot["ended"]))
    return tuple(found)


def _health(url: str, snapshot: Values) -> Table:
    server, load, counts = snapshot["server"], snapshot["load"], snapshot["counts"]
    problem = server["problem"]
    rows: list[tuple[str | Cell, ...]] = [
        ("state", Cell(problem or "takes requests", "bad" if problem else "good")),
        ("model", server["model"]),
        ("up", _seconds(server["uptime_seconds"])),
        ("last step", f"{_seconds(server['step_age_seconds'])} ago" if load["busy"] else "idle"),
        ("running", f"{load['running']:,} of {load['max_running']:,}"),
        ("waiting", f"{load['waiting']:,} of {load['max_waiting']:,}"),
    ]
    if counts:
        ends = counts["ends"]
        rows += [
            ("replied", f"{ends['stop'] + ends['length']:,}"),
            ("cancelled", f"{ends['cancelled']:,}"),
            ("errors", Cell(f"{ends['error']:,}", "bad" if ends["error"] else None)),
            ("refused", f"{sum(counts['refusals'].values()):,}"),
            ("memory", format_bytes(server["memory_bytes"])),
        ]
    return Table.of(f"Server {url}, version {server['version']}", ("", ""), rows)


def _speed(speed: Values) -> Table:
    lately = speed["minutes"][MINUTES]
    rows = (
        (name, *(_seconds(lately[key][rank]) for rank in ("p50", "p95", "p99")), f"{lately[key]['values']:,}")
        for name, key in (("time to first token", "first_token"), ("between tokens", "between_tokens"))
    )
    note = (
        f"In the last {_seconds(lately['seconds'])}: {lately['reply_rate']:,.1f} reply tokens and "
        f"{lately['prefill_rate']:,.1f} computed prompt tokens a second."
    )
    return Table.of("Speed", ("", "p50", "p95", "p99", "count"), rows, note)


def _cache(cache: Values, tier: Values | None) -> Table:
    asked = cache["queried_tokens"]
    rows = (
        (pool["group"], format_bytes(pool["page_bytes"]), f"{pool['in_use']:,}", f"{pool['idle']:,}")
        for pool in cache["pools"]
    )
    note = (
        f"Of {asked:,} prompt tokens {_share(cache['hit_tokens'], asked)} were reused, "
        f"{_seconds(cache['saved_seconds'])} of prefill saved; "
        f"{_share(cache['too_short_tokens'], asked)} were known, but their window gone; "
        f"{cache['evicted_pages']:,} pages were evicted; "
        f"{format_bytes(cache['free_bytes'])} of {format_bytes(cache['kv_cache_bytes'])} are free."
    )
    if tier:
        note += f"\n{_tier(tier, cache['loaded_tokens'])}"
    return Table.of("Cache", ("group", "page", "in use", "cached"), rows, note)


def _tier(tier: Values, loaded: int) -> str:
    state = tier["state"]
    stopped = " nor ".join(
        word for word, works in (("reads", "reading"), ("writes", "writing")) if not state[works]
    )
    return (
        f"The tier holds {format_bytes(tier['bytes'])} in {tier['objects']:,} objects; "
        f"{loaded:,} prompt tokens came from it."
        + (f" It no longer {stopped}: {state['reason']}." if stopped else "")
    )


def _requests(requests: list[Values]) -> Table:
    left = len(requests) - MOST_REQUESTS
    return Table.of(
        "Requests",
        ("request", "tenant", "state", "prompt", "reused", "reply", "age"),
        (
            (
                each["id"],
                each["tenant"] or "-",
                each["state"],
                f"{each['prompt_tokens']:,}",
                f"{each['reused_tokens']:,}",
                f"{each['completion_tokens']:,}",
                _seconds(each["age_seconds"]),
            )
            for each in requests[:MOST_REQUESTS]
        ),
        f"and {left:,} younger ones" if left > 0 else "",
    )


def _ended(ended: list[Values]) -> Table:
    def rows() -> Iterator[tuple[str, ...]]:
        for each in reversed(ended):
            tokens = (f"{each[key]:,}" for key in ("prompt_tokens", "reused_tokens"))
            yield each["id"], each["reason"], *tokens, each["why"]

    return Table.of("Ended lately", ("request", "end", "prompt", "reused", "why"), rows()).with_prose()


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    if value < 1:
        return f"{value * 1000:.3g} ms"
    for limit, size, unit in ((90, 1, "s"), (5400, 60, "min"), (172800, 3600, "h")):
        if value < limit:
            return f"{value / size:.3g} {unit}"
    return f"{value / 86400:.3g} d"

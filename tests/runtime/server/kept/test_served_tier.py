"""A tier below a server's pages, over HTTP: who finds what, and what is said where the disk fails."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import re
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvfold.plugins.contract.errors import RequestError
from kvfold.runtime.llm.async_llm import AsyncLLM
from kvfold.runtime.memory.tiers import object_store
from kvfold.runtime.memory.tiers.object_tier import HostTier, ObjectTier
from kvfold.runtime.memory.tiers.tier_state import TierState
from kvfold.runtime.sampling.params import SamplingParams
from kvfold.runtime.scheduler.request import Prompt
from kvfold.runtime.server.counts.tier_watch import TierWatch
from kvfold.runtime.server.start.kept_pages import kept_pages
from kvfold.runtime.server.start.server_settings import ServerSettings
from tests.runtime.byte_tokenizer import VOCAB, ByteTokenizer
from tests.runtime.harness import PLANS, check, make_llm
from tests.runtime.memory.tiers.test_tier_failures import end_pause, guarded, refresh
from tests.runtime.scheduler.test_below_the_pools import PROMPT, make_tier, open_directory
from tests.runtime.server.asgi_client import until
from tests.runtime.server.guard.test_gate import bearer, entry, write
from tests.runtime.server.ui.watched import Watched, make_app
from tests.runtime.synthetic_engine import expected_tokens

PLAN = PLANS["hybrid"]
PAGE = PLAN.page_size
SHORT = SamplingParams(max_tokens=3)
ALICE, BOB, ROOT = bearer("alice"), bearer("bob"), bearer("root")

__all__ = ["guarded"]


@asynccontextmanager
async def serving(tier: ObjectTier, keys: Path | None = None) -> AsyncIterator[Watched]:
    """A server over the synthetic engine; at its end the pages are all there."""
    app, state = make_app(keys)
    llm, _ = make_llm(PLAN, tier=tier)
    state.loaded(AsyncLLM(llm), None)
    try:
        yield Watched(app, state)
    finally:
        await state.llm.close()
        check(llm)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(test(), 60)

    asyncio.run(limited())


async def ask(server: Watched, prompt: list[int], headers: dict[str, str] | None = None) -> int:
    """Tokens of a prompt that were reused; its reply is what the definition says."""
    answer = (await server.complete(prompt, headers, temperature=0)).json()
    expected = ByteTokenizer(()).decode(expected_tokens(PLAN, prompt, 2, VOCAB))
    assert answer["choices"][0]["text"] == expected
    cached: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return cached


async def seen(server: Watched) -> dict[str, Any]:
    """What the page shows of the tier; it must be what a scraper reads."""
    (snapshot,) = await server.events(1)
    assert snapshot["server"]["sees_whole_server"]
    tier: dict[str, Any] = snapshot["tier"]
    metrics = (await server.get("/metrics")).body.decode()
    works = dict(re.findall(r'kvfold:tier_works\{what="(\w+)"\} (\S+)', metrics))
    state = tier["state"]
    assert works == {what: str(float(state[what])) for what in ("reading", "writing")}
    server.state.look()
    return tier


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "pages are" in record.getMessage()]


def test_another_tenant_reuses_nothing_from_any_tier(tmp_path: Path) -> None:
    keys = write(tmp_path / "keys.json", [entry("alice"), entry("bob"), entry("root", roles=["admin"])])

    async def test() -> None:
        async with serving(open_directory(PLAN, tmp_path / "kv"), keys) as server:
            assert await ask(server, PROMPT, ALICE) == 0
            assert await ask(server, PROMPT, BOB) == 0, "nor from the tree"
            assert await ask(server, [*PROMPT, 1], ALICE) == len(PROMPT) // PAGE * PAGE
        async with serving(open_directory(PLAN, tmp_path / "kv"), keys) as server:
            assert await ask(server, [*PROMPT, 2], ROOT) == 0
            assert await ask(server, [*PROMPT, 3], ALICE) == len(PROMPT) // PAGE * PAGE
            for caller, sees in ((ALICE, False), (ROOT, True)):
                (snapshot,) = await server.events(1, caller)
                assert (snapshot["tier"] is not None) == sees
            cache = server.state.llm.snapshot
            await until(lambda: cache().metrics.cache.loaded_tokens == len(PROMPT) // PAGE * PAGE)

    run(test)


def test_a_full_disk_costs_no_request_and_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "kvfold.server")
    tier = open_directory(PLAN, tmp_path / "kv")

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def test() -> None:
        async with serving(tier) as server:
            assert await ask(server, PROMPT) == 0 and tier.flush(10)
            before = await seen(server)
            assert before["state"] == {"reading": True, "writing": True, "reason": ""} and before["bytes"]
            with monkeypatch.context() as patch:
                patch.setattr("kvfold.runtime.memory.tiers.directory_files.os.write", full)
                for first in range(3):
                    assert await ask(server, [first, *PROMPT]) == 0 and tier.flush(10)
                    found = await seen(server)
                assert not found["state"]["writing"] and "No space left" in found["state"]["reason"]
                assert found["dropped"] == 3 and found["errors"] == 1
            end_pause(tier)
            assert await ask(server, [9, *PROMPT]) == 0 and tier.flush(10)
            assert (await seen(server))["state"]["writing"]

    run(test)
    assert lines(caplog) == [
        "pages are computed where they were kept: the tier cannot write: No space left on device",
        "pages are kept again",
    ]


def test_a_read_only_directory_is_read_and_what_is_new_is_computed(guarded: Path) -> None:
    folder = guarded.parent / "kv"  # the directory that cannot be written, with this server's pages in it

    async def fill() -> None:
        async with serving(open_directory(PLAN, folder)) as server:
            await ask(server, PROMPT)

    async def test() -> None:
        tier = open_directory(PLAN, folder)
        async with serving(tier) as server:
            assert await ask(server, [*PROMPT, 1]) == len(PROMPT) // PAGE * PAGE
            assert await ask(server, PROMPT[::-1]) == 0 and tier.flush(10)
            found = await seen(server)
            assert found["state"]["reading"] and "Permission denied" in found["state"]["reason"]

    as_root = os.getuid() == 0
    if as_root:
        os.seteuid(0)
        folder.mkdir(0o700)
        os.chown(folder, *guarded.stat()[4:6])
        os.seteuid(guarded.stat().st_uid)
    else:
        folder.mkdir(0o700)
    run(fill)
    for path in (folder, *folder.iterdir()):
        path.chmod(0o500)
    run(test)
    for path in (folder, *folder.iterdir()):
        path.chmod(0o700)


def test_a_directory_that_vanishes_while_serving_is_done_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "kvfold.server")
    folder = tmp_path / "kv"
    tier = open_directory(PLAN, folder)

    async def test() -> None:
        async with serving(tier) as server:
            assert await ask(server, PROMPT) == 0 and tier.flush(10)
            folder.rename(tmp_path / "away")
            refresh(tier)
            assert await ask(server, PROMPT[::-1]) == 0 and tier.flush(10)
            found = await seen(server)
            assert not found["state"]["reading"] and not found["state"]["writing"]
            assert found["state"]["reason"] == "cannot read: No such file or directory"
            (tmp_path / "away").rename(folder)
            refresh(tier)
            end_pause(tier)
            assert await ask(server, [7, *PROMPT]) == 0 and tier.flush(10)
            assert (await seen(server))["state"] == {"reading": True, "writing": True, "reason": ""}

    run(test)
    assert len(lines(caplog)) == 2


def test_what_waits_is_written_when_the_server_ends_but_a_disk_that_hangs_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, entered = threading.Event(), threading.Event()

    def hang(*_: Any) -> int:
        entered.set()
        go.wait(60)
        return 0

    async def test() -> None:
        llm, _ = make_llm(PLAN, tier=open_directory(PLAN, tmp_path / "kv"))
        async with AsyncLLM(llm) as served:
            await served.generate(Prompt(np.array(PROMPT)), SHORT)
        assert list((tmp_path / "kv").glob("*/*.checkpoint"))
        monkeypatch.setattr(object_store.HostMemory, "write", hang)
        llm, _ = make_llm(PLAN, tier=make_tier(PLAN, HostTier))
        served = AsyncLLM(llm)
        await served.generate(Prompt(np.array(PROMPT)), SHORT)
        await asyncio.to_thread(entered.wait, 30)
        assert not await served.close(0.05)
        go.set()

    run(test)


def test_a_folder_of_pages_that_cannot_be_used_is_refused_at_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert kept_pages(ServerSettings()) == {}
    assert kept_pages(ServerSettings(state_dir=tmp_path, kv_tier_bytes=0)) == {}
    assert not list(tmp_path.iterdir())
    given = kept_pages(ServerSettings(state_dir=tmp_path, kv_tier_bytes=99))
    assert given == {"kv_tier": tmp_path / "kv", "kv_tier_bytes": 99}
    (tmp_path / "kv").chmod(0o777)
    with pytest.raises(RequestError, match=r"--state-dir cannot be used: tier directory .*chmod 700"):
        kept_pages(ServerSettings(state_dir=tmp_path))
    (tmp_path / "kv").rmdir()
    (tmp_path / "kv").touch()
    with pytest.raises(RequestError, match=r"--state-dir cannot be used: tier directory .*File exists"):
        kept_pages(ServerSettings(state_dir=tmp_path))
    assert kept_pages(ServerSettings(state_dir=tmp_path / "kv" / "below")) == {}
    assert caplog.text.count("no pages are kept: ") == 1, "a disk that fails is told, and costs no more"


def test_the_log_tells_of_a_tier_s_end_and_its_return_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "kvfold.server")
    watch = TierWatch()
    for state in (
        TierState(),
        TierState(True, False, "cannot write: full"),
        TierState(False, False, "cannot read: gone"),
        TierState(False, False, "cannot read: gone"),
        TierState(),
        TierState(),
    ):
        watch.look(state)
    watch.look(None)
    assert [record.levelname for record in caplog.records] == ["ERROR", "INFO"]
    assert lines(caplog)[0].endswith("the tier cannot write: full")

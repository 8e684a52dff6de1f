"""`run_server` over a puppet: `python -m tests.runtime.server.processes.puppet_server OPTIONS`.

OPTIONS is JSON: `port` to listen on; `paths` and `drain_seconds` of the settings; `load_seconds`;
`no_bundle`, loading fails; `hangs`, a drain never ends; `fails_after`, seconds from loading to the engine's
end. Replies take a second.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

from kvfold.plugins.contract.errors import BundleError, KvfoldError
from kvfold.runtime.llm.generation import TextChunk
from kvfold.runtime.scheduler.request import Prompt
from kvfold.runtime.server.start.run_server import Loaded, run_server
from kvfold.runtime.server.start.server_settings import ServerSettings
from tests.runtime.server.puppet_llm import PuppetLLM, PuppetReply
from tests.runtime.server.served import make_server

PIECES = 20


class SlowReply(PuppetReply):
    """Takes a second."""

    def __init__(self, llm: SlowLLM, number: int, prompt: Prompt) -> None:
        super().__init__(number, prompt, ["x"] * PIECES, llm.go)
        self._llm = llm

    async def __anext__(self) -> TextChunk:
        await asyncio.sleep(1 / PIECES)
        if self._llm.failure is not None:
            self.done = True
            raise self._llm.failure
        if self.cancelled is not None:
            self._texts = self._texts[: self._said + 1]
        return await super().__anext__()


class SlowLLM(PuppetLLM):
    """Drains as AsyncLLM does, and may fail."""

    def __init__(self, fails_after: float, hangs: bool) -> None:
        self.hangs = hangs
        self._end = time.monotonic() + fails_after
        super().__init__()

    @property
    def failure(self) -> KvfoldError | None:
        return KvfoldError("the engine ran out of memory") if time.monotonic() > self._end else None

    @failure.setter
    def failure(self, value: KvfoldError | None) -> None:
        assert value is None

    def reply(self, number: int, prompt: Prompt) -> PuppetReply:
        return SlowReply(self, number, prompt)

    async def drain(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while self.hangs:
            await asyncio.sleep(1)
        while not all(reply.done or reply.cancelled == "client" for reply in self.replies):
            await asyncio.sleep(0.01)
            if time.monotonic() > end:
                for reply in self.replies:
                    reply.cancel("drain")


def main(options: dict[str, Any]) -> None:
    """Serve until a signal."""
    paths: dict[str, Any] = {name: Path(value) for name, value in options.get("paths", {}).items()}
    settings = ServerSettings(port=options["port"], drain_seconds=options.get("drain_seconds", 10), **paths)
    app, state = make_server(None, settings.keys)

    def load() -> Loaded:
        time.sleep(options.get("load_seconds", 0))
        if options.get("no_bundle"):
            raise BundleError("there is no bundle")
        llm = SlowLLM(options.get("fails_after", float("inf")), options.get("hangs", False))
        return llm, None, settings.limits(8)

    run_server(app, state, settings, load)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

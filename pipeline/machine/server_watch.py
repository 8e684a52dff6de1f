"""ServerWatch: the snapshots of a server that `kvfold serve` runs, read while it sends them."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from kvfold.plugins.contract.errors import RequestError

EVENTS = "/v1/kvfold/events"
SILENT_SECONDS, RETRY_SECONDS = 10.0, 2.0
KEPT = 5  # of the replies that ended last


@dataclass(frozen=True)
class Seen:
    """What is known of a server.

    Attributes:
        url: where it is.
        snapshot: its last one, with the last replies that ended; None before the first.
        problem: why none comes; None while they come.
    """

    url: str
    snapshot: dict[str, Any] | None = None
    problem: str | None = "no answer yet"


class ServerWatch:
    """Reads a server's stream in a thread of its own, again and again where it ends."""

    def __init__(self, url: str, key: str | None = None) -> None:
        """Begin to read; raises RequestError where the URL is none."""
        if urlsplit(url).scheme not in ("http", "https"):
            raise RequestError(f"the server is {url!r:.100}; give a URL such as http://127.0.0.1:8000")
        self._url = url.rstrip("/")
        self._headers = {} if key is None else {"authorization": f"Bearer {key}"}
        self._seen = Seen(self._url)
        self._first = threading.Event()
        threading.Thread(target=self._run, name="kvfold watch", daemon=True).start()

    @property
    def seen(self) -> Seen:
        """What is known now."""
        return self._seen

    def wait(self, seconds: float) -> None:
        """Wait for the first snapshot, or the first problem."""
        self._first.wait(seconds)

    def _run(self) -> None:
        while True:
            problem = "the stream ended"
            try:
                for snapshot in self._snapshots():
                    self._take(snapshot)
            except urllib.error.HTTPError as error:
                problem = _message(error)
            except (OSError, ValueError) as error:
                problem = str(getattr(error, "reason", error))
            self._seen = Seen(self._url, self._seen.snapshot, problem)
            self._first.set()
            time.sleep(RETRY_SECONDS)

    def _snapshots(self) -> Iterator[dict[str, Any]]:
        request = urllib.request.Request(self._url + EVENTS, headers=self._headers)
        with urllib.request.urlopen(request, timeout=SILENT_SECONDS) as answer:
            for line in answer:
                if line.startswith(b"data: "):
                    yield json.loads(line[6:])

    def _take(self, snapshot: dict[str, Any]) -> None:
        before = self._seen.snapshot
        ended = {each["id"]: each for each in [*(before["ended"] if before else ()), *snapshot["ended"]]}
        latest = sorted(ended.values(), key=lambda each: float(each["at"]))[-KEPT:]
        self._seen = Seen(self._url, {**snapshot, "ended": latest}, None)
        self._first.set()


def _message(error: urllib.error.HTTPError) -> str:
    try:
        return f"{error.code}: {json.loads(error.read())['error']['message']}"
    except (OSError, ValueError, KeyError, TypeError):  # a proxy's own answer
        return f"status {error.code}"

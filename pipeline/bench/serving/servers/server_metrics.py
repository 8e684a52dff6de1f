"""What a kvfold server says of itself at /metrics, in Prometheus' text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from kvfold.plugins.contract.errors import TargetError

METRICS = "/metrics"
REQUESTS = "/v1/kvfold/requests"  # who runs or waits, of the same moment; far cheaper to ask
POOL_PAGES = "kvfold:pool_pages"
RUNNING, WAITING = "vllm:num_requests_running", "vllm:num_requests_waiting"
_LINE = re.compile(r"^([\w:]+)(?:\{(.*)\})? (\S+)$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Sample:
    """One line.

    Attributes:
        name: of the metric.
        labels: by name.
        value: what it counts.
    """

    name: str
    labels: dict[str, str]
    value: float


@dataclass(frozen=True)
class ServerState:
    """Pages and requests at one moment.

    Attributes:
        pages: of all groups, by state: `idle` (in the prefix tree alone) and `used`. A page that is lost
            stays used when nobody is there.
        running: requests.
        waiting: requests.
    """

    pages: dict[str, int]
    running: int
    waiting: int

    @property
    def at_rest(self) -> bool:
        """Whether no request is there and none holds a page."""
        return not (self.running or self.waiting or self.pages["used"])


def read_samples(text: str) -> Iterator[Sample]:
    """Every sample of Prometheus' text format."""
    for line in text.splitlines():
        if match := _LINE.match(line):
            name, labels, value = match.groups()
            yield Sample(name, dict(_LABEL.findall(labels or "")), float(value))


def read_state(text: str) -> ServerState:
    """The pages and requests of a kvfold server.

    Raises:
        TargetError: the text has none of these metrics.
    """
    samples = list(read_samples(text))
    pages = {"idle": 0, "used": 0}
    found = [sample for sample in samples if sample.name == POOL_PAGES]
    for sample in found:
        pages[sample.labels["state"]] += int(sample.value)
    if not found:
        raise TargetError(f"the server's {METRICS} has no {POOL_PAGES}; only a kvfold server can be asked")
    counts = {name: sum(s.value for s in samples if s.name == name) for name in (RUNNING, WAITING)}
    return ServerState(pages, int(counts[RUNNING]), int(counts[WAITING]))

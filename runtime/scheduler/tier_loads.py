"""TierLoads: what waiting requests expect from the tier."""

from __future__ import annotations

from concurrent.futures import FIRST_COMPLETED, wait

from kvfold.runtime.memory.kv_memory import KvMemory
from kvfold.runtime.memory.tier_link import Load
from kvfold.runtime.scheduler.request import Request


class TierLoads:
    """A load a request at most; others run until it has come. True while there is one."""

    def __init__(self, memory: KvMemory) -> None:
        """None yet."""
        self._memory = memory
        self._loads: dict[Request, Load] = {}
        self._preempted: set[Request] = set()

    def __bool__(self) -> bool:
        """Whether something is on its way, or came and was not taken."""
        return bool(self._loads)

    def ask(self, request: Request) -> bool:
        """Ask the tier for what the tree lacks; whether something comes."""
        load = self._memory.fetch(request.tokens, request.first_wanted + 1, request.prefix.tenant)
        if load is not None:
            self._loads[request] = load
        return load is not None

    def preempted(self, request: Request) -> None:
        """A request's pages may leave the tree before it goes on."""
        self._preempted.add(request)

    def ask_again(self, request: Request) -> bool:
        """Once a preempted request has room: ask for what it lost meanwhile; whether something comes."""
        if request not in self._preempted:
            return False
        self._preempted.remove(request)
        return self.ask(request)

    def is_awaited(self, request: Request) -> bool:
        """Whether a request's load is still on its way."""
        return request in self._loads and not self._loads[request].ended

    def take(self, request: Request) -> Load | None:
        """What a request waited for."""
        return self._loads.pop(request, None)

    def cancel(self, request: Request) -> None:
        """A request ended while it waited."""
        self._preempted.discard(request)
        load = self.take(request)
        if load is not None:
            load.future.cancel()

    def wait(self, seconds: float) -> None:
        """Wait until something comes, so long at most."""
        wait([load.future for load in self._loads.values()], seconds, FIRST_COMPLETED)

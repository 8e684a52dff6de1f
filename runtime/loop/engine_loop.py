"""EngineLoop: the one owner of an engine, its scheduler and its pages.

Clients of any thread put commands into the inbox. A turn takes them out, then runs a step. Turns run one
at a time: by whoever waits for a reply, or by a thread of the loop's own.
"""

from __future__ import annotations

from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Condition, RLock, Thread

from kvfold.plugins.contract.errors import EngineError
from kvfold.runtime.engine.protocol import Engine, EngineInfo
from kvfold.runtime.loop.commands import Cancel, Close, Command, CopyTree, Discard, Submit
from kvfold.runtime.loop.core import GOES_ON, Core, Turn
from kvfold.runtime.loop.snapshot import LoopSnapshot
from kvfold.runtime.loop.ticket import Ticket
from kvfold.runtime.memory.tiers.kv_tier import KvTier
from kvfold.runtime.memory.tree_copy import TreeCopy
from kvfold.runtime.metrics import Metrics
from kvfold.runtime.runtime_config import RuntimeConfig
from kvfold.runtime.scheduler.request import Prompt


class EngineLoop:
    """Runs tickets on an engine.

    Attributes:
        core: what it owns; to be looked at only between turns.
    """

    def __init__(self, engine: Engine, config: RuntimeConfig, tier: KvTier | None = None) -> None:
        """An idle loop; its pages go into a tier, if there is one, and come from it."""
        self.core = Core(engine, config, tier)
        self._turning = RLock()
        self._turned = Condition()
        self._thread: Thread | None = None
        self._inbox: SimpleQueue[Command] = SimpleQueue()

    # For clients, from any thread

    @property
    def info(self) -> EngineInfo:
        """Of the engine."""
        return self.core.engine.info

    @property
    def failure(self) -> EngineError | None:
        """Why the engine takes no more; None while it is well."""
        return self.core.failure

    @property
    def max_length(self) -> int:
        """Tokens of the longest sequence that can run: the context's, or what the pools hold."""
        return self.core.scheduler.max_length

    def check(self, ticket: Ticket) -> None:
        """Refuse a ticket that can never run.

        Raises:
            EngineError: the engine failed.
            CapacityError: it needs more pages than the whole pool has.
        """
        if self.failure is not None:
            raise self.failure
        self.core.scheduler.check_capacity(ticket.request)

    def submit(self, ticket: Ticket) -> None:
        """Queue a ticket; raises as `check` does."""
        self.check(ticket)
        ticket.start_clock()
        self.post(Submit(ticket))

    def post(self, command: Command) -> None:
        """Put a command into the inbox; signal handlers may do so too."""
        self._inbox.put(command)

    def settle(self) -> None:
        """Carry out what is in the inbox, without a step; a loop's own thread does so within a step."""
        if self._thread is None:
            with self._turning:
                self._run_commands()

    def advance(self, done: Callable[[], bool]) -> None:
        """Wait until `done`, or for one turn: of this thread, where the loop has none of its own."""
        if self._thread is not None:
            with self._turned:
                self._turned.wait_for(lambda: done() or self._thread is None)
            return
        with self._turning:
            if not done():
                self.turn()

    def snapshot(self) -> LoopSnapshot:
        """How the loop stood a moment ago; costs nothing."""
        return self.core.snapshot

    def reusable_tokens(self, prompt: Prompt) -> int:
        """Tokens that a prompt would take from the cache now: an estimate, as other requests go on."""
        ids = prompt.token_ids
        return self.core.scheduler.memory.match_tokens(ids, len(ids), prompt.tenant)

    def metrics(self) -> Metrics:
        """Counters and page usage now; while a turn is running they may be a step apart."""
        return self.core.metrics()

    # For the owner

    def start(self, deliver: Callable[[Turn], None]) -> None:
        """Give the loop a thread of its own, which runs turns until `close`, or until the engine fails.

        Args:
            deliver: called in that thread after each turn that advanced something.
        """
        self._thread = Thread(target=self._run, args=(deliver,), name="kvfold engine", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the loop's own thread after its turn, and wait for that."""
        thread = self._thread
        if thread is not None:
            self.post(Close())
            thread.join()

    def _run(self, deliver: Callable[[Turn], None]) -> None:
        command: Command | None = None
        while self._thread is not None:
            try:
                turn = self.turn(command)
            except Exception as error:  # a law of ours is broken: nobody may wait for ever
                self.core.fail(error)
                turn = self.turn()
            if turn.advanced:
                deliver(turn)
            with self._turned:
                self._turned.notify_all()
            waits = turn.outcome not in GOES_ON and self._thread is not None
            command = self._inbox.get() if waits else None
        with self._turned:  # who still waits runs the turns from now on
            self._turned.notify_all()

    def turn(self, first: Command | None = None) -> Turn:
        """Carry out a command that was taken out already, then the inbox, then run one step."""
        with self._turning:
            if first is not None:
                self._run_command(first)
            self._run_commands()
            return self.core.turn()

    def _run_commands(self) -> None:
        while True:
            try:
                self._run_command(self._inbox.get_nowait())
            except Empty:
                return

    def _run_command(self, command: Command) -> None:
        match command:
            case Submit(ticket):
                self.core.begin(ticket)
            case Cancel(ticket, reason, keep):
                self.core.cancel(ticket, reason, keep)
            case Discard(sequence):
                self.core.scheduler.discard(sequence)
            case CopyTree(tenant, taken):
                taken(TreeCopy(self.core.scheduler.memory.tree, tenant))
            case Close():
                self._thread = None

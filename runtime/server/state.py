"""ServerState: what handlers share."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from kvfold.runtime.loop.ticket import Service
from kvfold.runtime.sampling.params import SamplingParams
from kvfold.runtime.scheduler.request import Prompt
from kvfold.runtime.server.counts.history import History
from kvfold.runtime.server.counts.reply_metrics import ReplyMetrics
from kvfold.runtime.server.counts.tier_watch import TierWatch
from kvfold.runtime.server.counts.timed_compiler import TimedCompiler
from kvfold.runtime.server.guard.admission import Admission
from kvfold.runtime.server.guard.admission_limits import AdmissionLimits
from kvfold.runtime.server.guard.body_budget import BodyBudget
from kvfold.runtime.server.guard.gate import Gate
from kvfold.runtime.server.http import HttpError, Request
from kvfold.runtime.server.served_llm import ServedLLM
from kvfold.runtime.server.streaming import StreamSweep
from kvfold.runtime.server.tracked_reply import TrackedReply

CLOSED = AdmissionLimits(0, 0)
LOADING_SECONDS, RESTART_SECONDS = 5, 10


class ServerState:
    """One model and who uses it.

    Attributes:
        model_name: what clients call it.
        gate: who may ask.
        admission: what is inside.
        bodies: bytes of long bodies that are inside.
        metrics: of replies.
        history: of these, over the last hour.
        tier_watch: tells the log when pages can no longer be kept.
        sweep: over the streams that are being sent.
        started: the server's start, seconds since the epoch.
        stall_seconds: a step that takes longer is a hang.
        draining: no new request is taken.
    """

    def __init__(
        self, model_name: str, gate: Gate, limits: AdmissionLimits = CLOSED, stall_seconds: float = 30.0
    ) -> None:
        """Without a model yet: `loaded` brings it."""
        self.model_name = model_name
        self.gate = gate
        self.metrics = ReplyMetrics()
        self.history = History(self.metrics)
        self.tier_watch = TierWatch()
        self.admission = Admission(limits, self.metrics.refused)
        self.bodies = BodyBudget(self.metrics.refused)
        self.sweep = StreamSweep()
        self.started = time.time()
        self.stall_seconds = stall_seconds
        self.draining = False
        self._llm: ServedLLM | None = None
        self._compiler: TimedCompiler | None = None

    def loaded(self, llm: ServedLLM, compiler: Any, limits: AdmissionLimits | None = None) -> None:
        """The model can be asked from now on; `limits` where it brings them."""
        if limits is not None:
            self.admission.limits = limits
        self._llm = llm
        if compiler is not None:
            self._compiler = TimedCompiler(compiler, self.metrics.grammar_compile)

    @property
    def loaded_llm(self) -> ServedLLM | None:
        """The model; None while it loads."""
        return self._llm

    @property
    def llm(self) -> ServedLLM:
        """The model; raises HttpError 503 while it loads."""
        if self._llm is None:
            raise _loading()
        return self._llm

    @property
    def compiler(self) -> TimedCompiler | None:
        """The model's GrammarCompiler, timed; None where it has none. Raises HttpError 503 while it loads."""
        if self._llm is None:
            raise _loading()
        return self._compiler

    def why_not_ready(self) -> str | None:
        """What keeps the server from answering now; None where nothing does."""
        if self.draining:
            return "draining: it finishes what it has and takes no more"
        if self._llm is None:
            return "loading: the model is not read yet"
        if self._llm.failure is not None:
            return "dead: the engine failed; the process ends"
        age = self.step_age()
        if age > self.stall_seconds:
            return f"hung: the last step ended {age:.0f} s ago, and there is work"
        return None

    def look(self) -> None:
        """Go on with the history; whoever runs the server looks several times a second."""
        self.history.look(None if self._llm is None else self._llm.snapshot())
        tier = None if self._llm is None else self._llm.tier_stats
        self.tier_watch.look(None if tier is None else tier.state)

    def step_age(self) -> float:
        """Seconds since the last step while there is work; 0 while there is none."""
        if self._llm is None:
            return 0.0
        snapshot = self._llm.snapshot()
        return max(0.0, time.monotonic() - snapshot.last_step) if snapshot.busy else 0.0

    def submit_several(
        self, request: Request, prompt: Prompt, params: Sequence[SamplingParams], service: Service
    ) -> list[TrackedReply]:
        """Ask the model on behalf of a request, whose end cancels the replies.

        What a request was let in with is cancelled, as always, where a later prompt of it is refused.

        Raises:
            HttpError: 503 the model loads, drains or died; 429 too much waits already.
            RequestError: as AsyncLLM.submit.
            CapacityError: as AsyncLLM.submit.
        """
        llm = self.llm
        if self.draining:
            raise self._refuse("draining", "the server is shutting down", LOADING_SECONDS)
        if llm.failure is not None:
            raise self._refuse("dead", "the engine failed, and the server restarts", RESTART_SECONDS)
        tokens = len(prompt.token_ids) - llm.reusable_tokens(prompt)
        rate = llm.snapshot().prefill_rate
        self.admission.check(len(params), len(request.replies), tokens, rate)
        tracked: list[TrackedReply] = []
        for reply in llm.submit_several(prompt, params, service):
            admitted = self.admission.admit(0 if tracked else tokens)
            tracked.append(TrackedReply(reply, prompt, request.arrived, admitted, self.metrics))
        request.replies += tracked
        return tracked

    def _refuse(self, reason: str, text: str, seconds: int) -> HttpError:
        self.metrics.refused(reason)
        return _unavailable(text, reason, seconds)


def _loading() -> HttpError:
    return _unavailable("the model is loading", "loading", LOADING_SECONDS)


def _unavailable(text: str, code: str, seconds: int) -> HttpError:
    return HttpError(503, text, code=code, headers={"retry-after": str(seconds)})

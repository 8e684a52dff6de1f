"""ServerState: what handlers share."""

from __future__ import annotations

import time
from typing import Any

from kvfold.runtime.server.guard.gate import Gate
from kvfold.runtime.server.http import HttpError, Request
from kvfold.runtime.server.served_llm import ServedLLM
from kvfold.runtime.server.tracked_reply import ReplyObserver, TrackedReply


class ServerState:
    """One model and who uses it.

    Attributes:
        model_name: what clients call it.
        gate: who may ask.
        started: the server's, seconds since the epoch.
        draining: no new request is taken.
    """

    def __init__(self, model_name: str, gate: Gate, observer: ReplyObserver) -> None:
        """Without a model yet: `loaded` brings it."""
        self.model_name = model_name
        self.gate = gate
        self.started = time.time()
        self.draining = False
        self._observer = observer
        self._llm: ServedLLM | None = None
        self._compiler: Any = None

    def loaded(self, llm: ServedLLM, compiler: Any) -> None:
        """The model can be asked from now on."""
        self._llm, self._compiler = llm, compiler

    @property
    def llm(self) -> ServedLLM:
        """The model; raises HttpError 503 while it loads."""
        if self._llm is None:
            raise HttpError(503, "the model is loading", code="loading", headers={"retry-after": "5"})
        return self._llm

    @property
    def compiler(self) -> Any:
        """The model's GrammarCompiler; raises HttpError 503 while it loads."""
        self.llm  # noqa: B018
        return self._compiler

    def submit(self, request: Request, prompt: Any, params: Any, service: Any) -> TrackedReply:
        """Ask the model on behalf of a request; the reply is cancelled when the request ends.

        Raises:
            HttpError: 503 the model loads, drains or died; 429 too much waits already.
            RequestError: as AsyncLLM.submit.
            CapacityError: as AsyncLLM.submit.
        """
        reply = TrackedReply(self.llm.submit(prompt, params, service), request.arrived, self._observer)
        request.replies.append(reply)
        return reply

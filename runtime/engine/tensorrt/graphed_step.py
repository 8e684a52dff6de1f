"""How a decode bucket runs: directly at first, from then on as a CUDA graph."""

from __future__ import annotations

from typing import Any

from kvfold.runtime.engine.tensorrt.context import BoundContext
from kvfold.runtime.engine.tensorrt.device import Device


class GraphedStep:
    """Runs one decode bucket on a context of its own.

    A graph is undefined once the context that it was captured from takes other shapes, so no other bucket may
    use the context (TensorRT developer guide, "CUDA Graphs"). The first run loads kernels and sets up the
    context, which capturing forbids; a bucket that is met only once is never captured.
    """

    def __init__(self, device: Device, context: BoundContext, captures_itself: bool) -> None:
        """Over a context whose shapes and addresses no longer change."""
        self._device = device
        self._context = context
        self._captures_itself = captures_itself
        self._ran = False
        self._graph: Any = None

    def enqueue(self) -> None:
        """Put the step on the stream."""
        if self._ran and self._graph is None and not self._captures_itself:
            self._graph = self._device.capture(self._context.enqueue)
        if self._graph is not None:
            self._device.launch(self._graph)
            return
        self._context.enqueue()
        self._ran = True

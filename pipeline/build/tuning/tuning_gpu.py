"""The GPU of this machine as `tune_kernels` needs it: its name, and what compiles for it."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, closing, suppress
from multiprocessing import get_context
from types import TracebackType
from typing import Self

import triton

from kvfold.pipeline.build.end_with_parent import begin_quietly
from kvfold.pipeline.build.tuning.case_process import CaseProcess
from kvfold.pipeline.build.tuning.tuning_cases import TuningCase
from kvfold.plugins.cuda.attention_spec import Variant
from kvfold.plugins.cuda.compile_kernels import Cubin, compile_tuned
from kvfold.plugins.cuda.tuning import Tuning
from kvfold.runtime.engine.cuda.driver_calls import architecture_of, first_gpu, load_driver, name_of

MAX_SPILL_BYTES = 64  # more is a tile that did not fit


class TuningGpu:
    """The first visible GPU, and a process a core that compiles for it; a context manager."""

    def __init__(self) -> None:
        """Find the GPU; raises TargetError where there is none."""
        driver = load_driver()
        gpu = first_gpu(driver)
        self.card, self.architecture = name_of(driver, gpu), architecture_of(driver, gpu)
        self.triton: str = triton.__version__
        self._workers = os.cpu_count() or 1
        self._pool = _compilers(self._workers)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def compile(self, case: TuningCase, ways: Iterable[Tuning]) -> Iterator[Cubin | None]:
        """As `Bench.compile`; each core is one way ahead of the one that is wanted."""
        waiting: deque[tuple[Tuning, Future[Cubin | None]]] = deque()
        try:
            for way in ways:
                waiting.append((way, self._begin(case.variant, way)))
                if len(waiting) > self._workers:
                    yield self._end(case.variant, *waiting.popleft())
            while waiting:
                yield self._end(case.variant, *waiting.popleft())
        finally:
            for _, future in waiting:
                future.cancel()

    def _begin(self, variant: Variant, way: Tuning) -> Future[Cubin | None]:
        try:
            return self._pool.submit(compile_way, variant, self.architecture, way)
        except BrokenProcessPool:
            self._pool = _compilers(self._workers)
            return self._pool.submit(compile_way, variant, self.architecture, way)

    def _end(self, variant: Variant, way: Tuning, future: Future[Cubin | None]) -> Cubin | None:
        """A way that ends its compiler does not compile. Those beside it end too, so each is tried alone."""
        try:
            return future.result()
        except BrokenProcessPool:
            with _compilers(1) as alone, suppress(BrokenProcessPool):
                return alone.submit(compile_way, variant, self.architecture, way).result()
            return None

    def open(self, case: TuningCase) -> AbstractContextManager[CaseProcess]:
        """As `Bench.open`."""
        return closing(CaseProcess(case))


def _compilers(count: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=begin_quietly)


def compile_way(variant: Variant, architecture: int, way: Tuning) -> Cubin | None:
    """The cubin, or None where it does not fit, spills, or Triton cannot lower it."""
    try:
        cubin = compile_tuned(variant, architecture, way)
    except Exception:  # Triton's passes fail in ways of their own, and another way will do
        return None
    return cubin if cubin.kernel.spill_bytes <= MAX_SPILL_BYTES else None

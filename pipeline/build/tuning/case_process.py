"""A case in a process of its own: a kernel that faults, or never ends, costs that process and no other.

After a fault the driver refuses everything to the process that it happened in, so only a new one goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection

from kvfold.pipeline.build.end_with_parent import begin_quietly
from kvfold.pipeline.build.tuning.device_case import DeviceCase
from kvfold.pipeline.build.tuning.tune_kernels import Broke, CaseOnGpu, Timed
from kvfold.pipeline.build.tuning.tuning_cases import TuningCase
from kvfold.plugins.contract.errors import CapacityError, KvfoldError, TargetError
from kvfold.plugins.cuda.compile_kernels import Cubin
from kvfold.runtime.engine.cuda.device import Device

PATIENCE = 10.0  # seconds for all calls of a kernel; they take far less than one
OPENING = 120.0  # seconds for a process to start, compile what is not timed and fill the memory
ENDING = 10.0  # seconds for a killed process to go; one that the driver holds may stay


def open_on_gpu(case: TuningCase) -> CaseOnGpu:
    """The case on the first visible GPU; raises KvfoldError where it cannot be."""
    return DeviceCase(Device.open(), case)


class CaseProcess:
    """One case's inputs in a GPU's memory; a new process takes over from one that broke."""

    def __init__(
        self,
        case: TuningCase,
        opens: Callable[[TuningCase], CaseOnGpu] = open_on_gpu,
        patience: float = PATIENCE,
        opening: float = OPENING,
    ) -> None:
        """Start a process.

        Args:
            case: to open.
            opens: how, in that process.
            patience: seconds that it may take to time a kernel.
            opening: seconds that it may take to open the case.

        Raises:
            KvfoldError: the case cannot be opened.
        """
        self._case, self._opens, self._patience, self._opening = case, opens, patience, opening
        self._start()

    def time(self, cubin: Cubin) -> Timed | Broke | None:
        """As `CaseOnGpu.time`."""
        if self._connection.closed:  # only now: what broke the GPU is to be told whatever comes of this
            self._start()
        with suppress(BrokenPipeError):  # it ended meanwhile, as its answer says
            self._connection.send(cubin)
        answer = self._answer(self._patience)
        if answer is None or isinstance(answer, Timed):
            return answer
        if isinstance(answer, CapacityError):
            raise answer
        self.close()
        return Broke(str(answer))

    def close(self) -> None:
        """End the process, and so what it holds of the GPU."""
        self._connection.close()
        self._process.kill()
        self._process.join(ENDING)

    def _start(self) -> None:
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=serve_case, args=(theirs, self._case, self._opens), daemon=True
        )
        self._process.start()
        theirs.close()  # theirs alone now: where they end, ours says so
        answer = self._answer(self._opening)
        if answer is not None:
            self.close()
        if isinstance(answer, KvfoldError):
            raise answer
        if answer is not None:
            raise TargetError(
                f"the GPU could not be opened for {self._case.name}: {answer}; look at `nvidia-smi` and "
                "`dmesg`, then run `kvfold tune` again: it goes on from here"
            )

    def _answer(self, patience: float) -> Timed | KvfoldError | str | None:
        """What the process says, or in words that it says nothing, in so many seconds or at all."""
        if not self._connection.poll(patience):
            return f"it did not end in {patience:.0f} s"
        try:
            answer: Timed | KvfoldError | None = self._connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join(ENDING)
            return f"its process ended with {self._process.exitcode}"
        return answer


def serve_case(connection: Connection, case: TuningCase, opens: Callable[[TuningCase], CaseOnGpu]) -> None:
    """Open the case, then time each cubin that comes, until no more can come."""
    begin_quietly()
    try:
        on_gpu = opens(case)
    except KvfoldError as error:
        connection.send(error)
        return
    connection.send(None)
    with suppress(EOFError):
        while True:
            cubin = connection.recv()
            try:
                connection.send(on_gpu.time(cubin))
            except KvfoldError as error:
                connection.send(error)

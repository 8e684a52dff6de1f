"""What all plugin instances of one engine share: kernels, and the errors that TensorRT would swallow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from kvfold.plugins.contract.errors import KernelError
from kvfold.plugins.cuda.kernel_library import KernelLibrary
from kvfold.plugins.tensorrt.attributes import Node
from kvfold.plugins.tensorrt.launcher import Launcher


class Host:
    """One engine's side of its plugins.

    Attributes:
        trt: `tensorrt` or `tensorrt_rtx`.
        kernels: of the engine.
        architectures: SM versions that every node must have kernels for.
        launcher: puts kernels on a stream.
        nodes: every node that a plugin was made for, by name.
        errors: what callbacks raised, oldest first; as text, since a traceback would keep networks alive.
    """

    def __init__(
        self, trt: ModuleType, kernels: KernelLibrary, directory: Path, architectures: Sequence[int]
    ) -> None:
        self.trt = trt
        self.kernels = kernels
        self.architectures = tuple(architectures)
        self.launcher = Launcher(kernels, directory)
        self.nodes: dict[str, Node] = {}
        self.errors: list[str] = []

    def record(self, node: str, error: Exception) -> KernelError:
        """Keep an error as one that names its node, and return it."""
        text = str(error) if isinstance(error, KernelError) else f"{type(error).__name__}: {error}"
        named = text if text.startswith("attention node ") else f"attention node {node}: {text}"
        self.errors.append(named)
        return KernelError(named)

    @contextmanager
    def surfacing_errors(self) -> Iterator[None]:
        """Parse, build, deserialise or execute inside: the first error of a callback comes out of it.

        TensorRT reports a callback's exception in words of its own, or not at all.

        Raises:
            KernelError: what the callback found, from whatever TensorRT made of it.
        """
        self.errors.clear()
        try:
            yield
        except Exception as error:
            if self.errors:
                raise KernelError(self.errors[0]) from error
            raise
        if self.errors:
            raise KernelError(self.errors[0])

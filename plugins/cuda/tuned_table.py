"""What `kvfold tune` measured on a card: choices that compilation prefers to the rule in `tuning.py`.

`tuned/sm90.json` beside this file is the table for SM 90. One without a card's name and a date is none: no
table is written, or committed, without a measurement.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal, Self

from pydantic import ValidationError

from kvfold.plugins.contract.errors import KernelError
from kvfold.plugins.contract.fold_plan import describe_errors
from kvfold.plugins.contract.record import Record
from kvfold.plugins.contract.write_aside import write_aside

TABLES = Path(__file__).parent / "tuned"


class Way(Record):
    """A way to compile one kernel for heads of one width.

    Attributes:
        kernel: which one.
        int8_cache: whether its caches are int8.
        width: channels of a head, rounded up to a power of two.
        num_warps, num_stages, constants: as of `Tuning`.
    """

    kernel: Literal["prefill", "decode"]
    int8_cache: bool
    width: int
    num_warps: int
    num_stages: int
    constants: dict[str, int]

    @property
    def serves(self) -> tuple[str, bool, int]:
        """Kernel, type of caches and width: at most one way is chosen for each."""
        return self.kernel, self.int8_cache, self.width


class Choice(Way):
    """The fastest way found.

    Attributes:
        microseconds: of a call that was measured.
        rule_microseconds: the same as the rule compiles it.
    """

    microseconds: float
    rule_microseconds: float


class BrokenWay(Way):
    """A way that broke the GPU; it is not tried again.

    Attributes:
        error: what came of it.
    """

    error: str


class TunedTable(Record):
    """The choices for one architecture.

    Attributes:
        architecture: SM version of the card.
        card: its name.
        date: of the measurement, YYYY-MM-DD.
        triton: version that compiled.
        sources: hash of what was compiled and on which calls; choices of another are not gone on from.
        choices: at most one for each kernel, type of caches and width.
        broken: what broke the GPU meanwhile.
    """

    architecture: int
    card: str
    date: str
    triton: str
    sources: str
    choices: tuple[Choice, ...] = ()
    broken: tuple[BrokenWay, ...] = ()

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a table.

        Raises:
            KernelError: it cannot be read, or is none.
        """
        again = "run `kvfold tune` again on such a card, or remove the file"
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise KernelError(f"{path} cannot be read ({error.strerror}); {again}") from error
        except ValidationError as error:
            raise KernelError(f"{describe_errors(str(path), error)}; {again}") from error

    def save(self, path: Path) -> None:
        """Write the table; a kill leaves the old file or the new one.

        Raises:
            KernelError: the file cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_aside(path, lambda aside: aside.write_text(self.model_dump_json(indent=1) + "\n"))
        except OSError as error:
            raise KernelError(
                f"{path} cannot be written ({error.strerror}); name another file: kvfold tune --output FILE"
            ) from error

    def find(self, kernel: str, int8_cache: bool, width: int) -> Choice | None:
        """The choice for a kernel, where one was measured."""
        wanted = kernel, int8_cache, width
        return next((each for each in self.choices if each.serves == wanted), None)


def table_path(architecture: int) -> Path:
    """Where compilation looks for the table of an architecture."""
    return TABLES / f"sm{architecture}.json"


@cache
def tuned_table(architecture: int) -> TunedTable | None:
    """The table for an architecture; None where nobody measured one. Raises KernelError as `load` does."""
    path = table_path(architecture)
    table = TunedTable.load(path) if path.exists() else None
    if table is not None and table.architecture != architecture:
        raise KernelError(f"{path} is of SM {table.architecture}; run `kvfold tune` again on such a card")
    return table

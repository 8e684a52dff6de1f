"""kvfold's extras: which of their packages are missing here, and the command that installs them.

pyproject.toml lists them, and an installed kvfold carries that list. Here stands only what a package is
imported as, where that is not its name.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.metadata import PackageNotFoundError, requires
from importlib.util import find_spec

from kvfold.plugins.contract.errors import MissingExtraError

EXPORT = "export"
DEVELOPERS = "test"  # no command needs it
_INSTEAD_OF_A_BASE = {"onnxruntime-gpu"}  # the same module as a package that every kvfold has
_IMPORTED_AS = {"cuda-bindings": "cuda.bindings", "tensorrt-rtx-cu13": "tensorrt_rtx", "pyzmq": "zmq"}
_OF_EXTRA = re.compile(r"""([\w.-]+).*\bextra == ["']([\w-]+)["']""")


@cache
def extra_modules() -> dict[str, tuple[str, ...]]:
    """The modules of each extra, as they are imported; of a kvfold that is not installed nothing is known."""
    try:
        listed = requires("kvfold") or []
    except PackageNotFoundError:
        return {}
    found: dict[str, list[str]] = {}
    for package, extra in (match.groups() for line in listed if (match := _OF_EXTRA.match(line))):
        if extra != DEVELOPERS and package not in _INSTEAD_OF_A_BASE:
            found.setdefault(extra, []).append(_IMPORTED_AS.get(package, package.replace("-", "_")))
    return {extra: tuple(modules) for extra, modules in found.items()}


def install_command(*extras: str) -> str:
    """What to type for kvfold with these extras."""
    return f"pip install 'kvfold[{','.join(extras)}]'" if extras else "pip install kvfold"


def is_installed(module: str) -> bool:
    """Whether a module can be found; it is not imported."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of its parent package
        return False


def require_extra(extra: str) -> None:
    """Refuse to begin what an extra is needed for; raises MissingExtraError."""
    if missing := _missing(extra):
        raise _error(extra, missing)


def explain_missing(error: ModuleNotFoundError) -> MissingExtraError | None:
    """The extra that brings the module of an import that failed; None where it is no extra's."""
    name = (error.name or "").partition(".")[0]
    for extra in extra_modules():
        missing = _missing(extra)
        if name in (module.partition(".")[0] for module in missing):
            return _error(extra, missing)
    return None


def _missing(extra: str) -> list[str]:
    return [module for module in extra_modules().get(extra, ()) if not is_installed(module)]


def _error(extra: str, modules: list[str]) -> MissingExtraError:
    return MissingExtraError(
        f"{', '.join(modules)} not installed, which kvfold needs for this: run `{install_command(extra)}`"
        + ("; a bundle that was built elsewhere runs without: `kvfold run FOLDER`" if extra == EXPORT else "")
    )

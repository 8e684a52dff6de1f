"""Which source files a result comes from, derived from imports, and a hash of what they mean.

A module's sources are itself, the packages around it, and those of every module of kvfold that it imports at
any depth of its code, but not for annotations alone. Files beside a module that it names (a text, a folder of
templates) belong to it, and to the module that names one of our compiled libraries belongs the C++ below its
folder with all that this includes. What does not change what a file does does not count: comments,
docstrings, formatting.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import kvfold

PACKAGE = "kvfold"
ROOT = Path(kvfold.__file__).parent
CPP = (".cc", ".h")
_OUR_LIBRARY = re.compile(r"libkvfold_\w+\.so")
_DATA_NAME = re.compile(r"\w[\w-]*(\.[\w-]+)*")
_INCLUDE = re.compile(r'^#include "([\w./]+)"', re.MULTILINE)
# A string, or a comment to leave out.
_CPP_COMMENT = re.compile(r'"(?:\\.|[^"\\\n])*"|//[^\n]*|/\*.*?\*/', re.DOTALL)
# Where a node of Python's syntax keeps statements, or what holds some.
_BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")
_SPACE = re.compile(r"\s+")


@cache
def hash_sources(modules: tuple[str, ...], root: Path = ROOT) -> str:
    """Hash of everything that modules, given by their dotted names, are made from."""
    digest = hashlib.sha256()
    for line in sorted(_read(path, root).line for path in source_files(modules, root)):
        digest.update(line)
    return digest.hexdigest()


def source_files(modules: Iterable[str], root: Path = ROOT) -> frozenset[Path]:
    """Every file that modules are made from.

    Args:
        modules: dotted names, such as `kvfold.pipeline.stages.fold`.
        root: the folder of the package `kvfold`.
    """
    found: set[Path] = set()
    waiting = [path for module in modules for path in _files_of(module, root)]
    assert waiting, f"none of {modules} is a module of {root}"
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += _read(path, root).named
    return frozenset(found)


@dataclass(frozen=True)
class _Source:
    """A file's name with a hash of what it does, and the files that it imports, includes or names."""

    line: bytes
    named: tuple[Path, ...]


@cache
def _read(path: Path, root: Path) -> _Source:
    """Python counts by its syntax tree, C++ without comments and spacing, anything else as it is."""

    def line(content: bytes) -> bytes:
        return f"{path.relative_to(root).as_posix()} {hashlib.sha256(content).hexdigest()}\n".encode()

    if path.suffix == ".py":
        tree = ast.parse(path.read_bytes(), filename=str(path))
        imported = (file for module in _imported(tree) for file in _files_of(module, root))
        named = dict.fromkeys((*imported, *_beside(path, tree)))
        return _Source(line(ast.dump(_without_docstrings(tree)).encode()), tuple(named))
    if path.suffix in CPP:
        code = path.read_text()
        included = (root / "plugins" / name for name in _INCLUDE.findall(code))
        kept = _CPP_COMMENT.sub(lambda part: part[0] if part[0].startswith('"') else " ", code)
        return _Source(line(_SPACE.sub(" ", kept).encode()), tuple(f for f in included if f.is_file()))
    return _Source(line(path.read_bytes()), ())


def _without_docstrings(tree: ast.Module) -> ast.Module:
    """The same tree, changed in place."""
    for node in (tree, *_statements(tree)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            node.body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
    return tree


def _imported(tree: ast.Module) -> Iterator[str]:
    """Modules and names that code imports at any depth, but for annotations."""
    for statement in _statements(tree):
        if isinstance(statement, ast.ImportFrom) and statement.module:
            yield from (f"{statement.module}.{name.name}" for name in statement.names)
        elif isinstance(statement, ast.Import):
            yield from (name.name for name in statement.names)


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """All statements, and what they are grouped in, but those for annotations; expressions hold none."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        for field in _BLOCKS:
            for child in getattr(node, field, ()):
                if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                    continue
                yield child
                waiting.append(child)


def _files_of(module: str, root: Path) -> Iterator[Path]:
    """A module's file and those of the packages around it; a name inside a module stands for the module."""
    package, *parts = module.split(".")
    if package != PACKAGE:
        return
    folder = root
    yield folder / "__init__.py"
    for part in parts:
        if (file := folder / f"{part}.py").is_file():
            yield file
            return
        folder = folder / part
        if not (folder / "__init__.py").is_file():
            return
        yield folder / "__init__.py"


def _beside(path: Path, tree: ast.Module) -> Iterator[Path]:
    """Data beside a module that it names, and the C++ of a library of ours."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
            continue
        if _OUR_LIBRARY.fullmatch(node.value):
            yield from (file for file in path.parent.rglob("*") if file.suffix in CPP)
        elif _DATA_NAME.fullmatch(node.value):
            yield from _data(path.parent / node.value)


def _data(path: Path) -> Iterator[Path]:
    """A file that is no code, or all of a folder that is no package."""
    if path.is_file() and path.suffix not in (".py", ".so"):
        yield path
    elif path.is_dir() and not (path / "__init__.py").exists() and not any(path.glob("*.py")):
        yield from (file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts)

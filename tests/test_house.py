"""The house: few entries a room, names that exist once, arrows that go down, nothing too long to read."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath

import pytest

from tests.root import ROOT

PARTS = ("plugins", "export", "runtime", "pipeline")
MAX_ENTRIES, MAX_FILE_LINES, MAX_FUNCTION_LINES = 16, 320, 50
# Files that are called after what they hold, wherever there is one of its kind: the parts of an op, a stage,
# a command; and what Python and pytest call themselves.
OP_PARTS = {"schema.py", "reference.py", "inputs.py", "packing.py", "tolerances.py"}
NAMED_BY_KIND = ("pipeline/stages/", "pipeline/commands/")
NAMED_BY_TOOLS = {"__init__.py", "conftest.py"}
# Written to be read beside their formula, or compiled as one unit.
LONG_FUNCTIONS = {
    "plugins/cuda/kernels/append.py:append",
    "plugins/cuda/kernels/decode.py:decode",
    "plugins/cuda/kernels/prefill.py:prefill",
    "plugins/paged_attention/reference.py:paged_attention",
}
# From the lowest room to the highest; a room may use those before it. A file beside rooms is one of its own.
LAYERS = {
    "": ("plugins", "export", "runtime", "pipeline"),
    "plugins": (
        *("contract", "int8_linear", "int4_linear", "int8_embedding", "paged_attention", "sampling"),
        *("onnxruntime", "cpu", "cuda", "tensorrt"),
    ),
    "export": ("weights", "model", "checkpoint", "layerwise", "quantize", "fold", "heal", "search", "graph"),
    "runtime": (
        *("checks", "runtime_config", "bundle", "text", "sampling", "structured", "metrics", "engine"),
        *("memory", "scheduler", "loop", "sessions", "llm", "status", "server", "cluster"),
    ),
    "pipeline": (
        *("show", "machine", "recipe", "workspace", "texts", "build", "quality", "report", "stages"),
        *("bring_up_to_date", "studies", "bench", "chat", "commands", "cli"),
    ),
}


def files(*suffixes: str, parts: tuple[str, ...] = PARTS) -> list[PurePosixPath]:
    """Files of the house with one of these endings, from the root of the repository."""
    found = (path for part in parts for path in (ROOT / part).rglob("*") if path.suffix in suffixes)
    return sorted(PurePosixPath(path.relative_to(ROOT)) for path in found if "__pycache__" not in path.parts)


PYTHON = files(".py")
PACKAGES = sorted({path.parent for path in PYTHON})


@cache
def parse(path: PurePosixPath) -> ast.Module:
    return ast.parse((ROOT / path).read_bytes())


def imports(path: PurePosixPath) -> Iterator[PurePosixPath]:
    """Files of the house that one imports: inside functions and for annotations alone too."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{name.name}" for name in node.names]
        elif isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        else:
            continue
        for name in names:
            package, *folders = name.split(".")
            if package == "kvfold" and folders:
                yield from find(folders)


def find(names: list[str]) -> Iterator[PurePosixPath]:
    """The module that a dotted name is, or is in."""
    for length in range(len(names), 0, -1):
        path = PurePosixPath(*names[:length])
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if (ROOT / file).is_file():
                yield file
                return


@cache
def arrows() -> list[tuple[PurePosixPath, PurePosixPath]]:
    return [(path, target) for path in PYTHON for target in imports(path) if target != path]


@pytest.mark.parametrize(
    "folder", sorted({*PACKAGES, *(path.parent for path in files(".cc", ".h", ".j2"))}), ids=str
)
def test_a_folder_has_few_entries(folder: PurePosixPath) -> None:
    entries = [
        e
        for e in (ROOT / folder).iterdir()
        if e.name not in ("__init__.py", "__pycache__") and e.suffix != ".so"
    ]
    assert len(entries) <= MAX_ENTRIES


def test_test_folders_have_few_entries_too() -> None:
    for folder in {path.parent for path in files(".py", parts=("tests",))}:
        entries = [e for e in (ROOT / folder).iterdir() if e.name not in ("__init__.py", "__pycache__")]
        assert len(entries) <= MAX_ENTRIES, folder


def test_no_base_name_exists_twice() -> None:
    names = Counter(
        path.name
        for path in files(".py", ".cc", ".h", ".j2", parts=(*PARTS, "tests"))
        if path.name not in OP_PARTS | NAMED_BY_TOOLS and not str(path).startswith(NAMED_BY_KIND)
    )
    assert {name: count for name, count in names.items() if count > 1} == {}


@pytest.mark.parametrize("part", LAYERS)
def test_every_room_has_its_place(part: str) -> None:
    depth = len(PurePosixPath(part).parts)
    inside = [path for path in files(".py", ".cc") if str(path).startswith(f"{part}/") or not part]
    rooms = {path.parts[depth].removesuffix(".py") for path in inside}
    assert rooms - {"__init__"} == set(LAYERS[part])


@pytest.mark.parametrize("part", LAYERS)
def test_arrows_only_go_down(part: str) -> None:
    order = LAYERS[part]
    depth = len(PurePosixPath(part).parts)
    upward = []
    for path, target in arrows():
        if not (str(path).startswith(f"{part}/") and str(target).startswith(f"{part}/")) and part:
            continue
        room, other = (each.parts[depth].removesuffix(".py") for each in (path, target))
        if "__init__" not in (room, other) and order.index(other) > order.index(room):
            upward.append(f"{path} -> {target}")
    assert upward == []


def test_export_and_runtime_never_meet() -> None:
    assert [f"{a} -> {b}" for a, b in arrows() if {a.parts[0], b.parts[0]} == {"export", "runtime"}] == []


def test_rooms_and_files_form_no_circle() -> None:
    assert circle({(str(a), str(b)) for a, b in arrows()}) == []
    for folder in PACKAGES:
        depth = len(folder.parts)
        inside = [(a, b) for a, b in arrows() if folder in a.parents and folder in b.parents]
        rooms = {(a.parts[depth], b.parts[depth]) for a, b in inside}
        assert circle({(a, b) for a, b in rooms if a != b and "__init__.py" not in (a, b)}) == [], folder


def circle(pairs: set[tuple[str, str]]) -> list[str]:
    """Names in a circle, or that lead to one: what is left when leaves are taken away, again and again."""
    while pairs:
        sources = {a for a, _ in pairs}
        kept = {(a, b) for a, b in pairs if b in sources}
        if kept == pairs:
            return sorted(sources)
        pairs = kept
    return []


def test_every_module_says_what_it_is() -> None:
    modules = files(".py", parts=(*PARTS, "tests", "src"))
    assert [
        str(path) for path in modules if not (ast.get_docstring(parse(path)) or "").partition("\n")[0]
    ] == []


def test_no_file_is_too_long() -> None:
    lengths = {
        path: len((ROOT / path).read_text().splitlines())
        for path in files(".py", ".cc", ".h", parts=(*PARTS, "tests"))
    }
    assert {str(path): length for path, length in lengths.items() if length > MAX_FILE_LINES} == {}


def test_no_function_is_too_long() -> None:
    long = {}
    for path in files(".py", parts=(*PARTS, "tests")):
        for node in ast.walk(parse(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno:
                length = node.end_lineno - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    long[f"{path}:{node.name}"] = length
    assert {name: length for name, length in long.items() if name not in LONG_FUNCTIONS} == {}
    assert set(long) >= LONG_FUNCTIONS, "an exception that nothing needs any more"


def test_nothing_imports_a_part_by_its_folder_s_name() -> None:
    """From a checkout's root, `import runtime` would find a second copy of every module."""
    for path in files(".py", parts=(*PARTS, "tests", "src")):
        for node in ast.walk(parse(path)):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [name.name for name in node.names] if isinstance(node, ast.Import) else []
            assert not {name.partition(".")[0] for name in names} & set(PARTS), path


def test_the_links_lead_to_the_folders() -> None:
    links = Path(ROOT / "src" / "kvfold")
    assert {part: (links / part).resolve() for part in PARTS} == {part: ROOT / part for part in PARTS}

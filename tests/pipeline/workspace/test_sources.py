"""Sources are derived: a file makes exactly those stages stale that import it, and only by what it does."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

from kvfold.pipeline.machine.targets import TARGETS
from kvfold.pipeline.stages.order import STAGES
from kvfold.pipeline.studies.search.search import MEASURING_MODULES
from kvfold.pipeline.workspace.sources import ROOT, hash_sources, source_files
from kvfold.pipeline.workspace.stage import target_stage

MODULES = {stage.name: stage.modules for stage in STAGES} | {
    "search": MEASURING_MODULES,
    "cost": ("kvfold.pipeline.studies.cost",),
    "methods": ("kvfold.pipeline.studies.cost", "kvfold.pipeline.studies.ablation.fold_by_method"),
}
# How a file of each kind is changed in what it does.
CHANGES = {".py": "\nCHANGED = 1\n", ".cc": "\nint changed;\n", ".h": "\nint changed;\n"}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package to change, the links as folders."""
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.safetensors")
    return Path(shutil.copytree(ROOT, tmp_path_factory.mktemp("src") / "kvfold", ignore=ignored))


def hashes(tree: Path) -> dict[str, str]:
    """Of every stage, and of whatever else is kept until its sources change; nothing remembered."""
    from kvfold.pipeline.workspace import sources

    hash_sources.cache_clear()
    sources._read.cache_clear()
    return {name: hash_sources(modules, tree) for name, modules in MODULES.items()}


def test_stages_come_from_exactly_the_files_that_they_import(tree: Path) -> None:
    for name, modules in MODULES.items():
        code = {path for path in source_files(modules, tree) if path.suffix in CHANGES}
        assert code == reached(modules, tree), name


def test_each_file_s_own_line_changes_with_it(tree: Path) -> None:
    """Every production file, changed one at a time."""
    from kvfold.pipeline.workspace import sources

    read = sources._read.__wrapped__
    for path in production(tree):
        before = read(path, tree)
        with changed(path):
            after = read(path, tree)
        assert after.line != before.line and after.named == before.named, path.relative_to(tree)


def test_a_file_makes_exactly_those_stale_that_import_it(tree: Path) -> None:
    """Some of the files, changed one at a time, everything read anew."""
    before = hashes(tree)
    importers = {name: reached(modules, tree) for name, modules in MODULES.items()}
    for path in production(tree)[::200]:
        with changed(path):
            after = hashes(tree)
        stale = {name for name in MODULES if after[name] != before[name]}
        assert stale == {name for name, files in importers.items() if path in files}, path.relative_to(tree)
    assert hashes(tree) == before


def production(tree: Path) -> list[Path]:
    """Every file of code."""
    return sorted(path for path in tree.rglob("*") if path.suffix in CHANGES)


@contextmanager
def changed(path: Path) -> Iterator[None]:
    """A file that does something else meanwhile."""
    rest = path.read_bytes()
    path.write_bytes(rest + CHANGES[path.suffix].encode())
    try:
        yield
    finally:
        path.write_bytes(rest)


def reached(modules: tuple[str, ...], tree: Path) -> set[Path]:
    """Files that modules reach by imports and includes: a second reading of the same law, for this test."""
    found, waiting = set[Path](), {path for module in modules for path in files_of(module, tree)}
    while waiting:
        path = waiting.pop()
        found.add(path)
        waiting |= next_files(path, tree) - found
    return found


@cache
def next_files(path: Path, tree: Path) -> frozenset[Path]:
    return frozenset(imported_or_included(path, tree))


def imported_or_included(path: Path, tree: Path) -> Iterator[Path]:
    if path.suffix == ".py":
        code = Runtime().visit(ast.parse(path.read_text()))
        for node in ast.walk(code):
            if isinstance(node, ast.ImportFrom):
                for name in node.names:
                    yield from files_of(f"{node.module}.{name.name}", tree)
            elif isinstance(node, ast.Import):
                for name in node.names:
                    yield from files_of(name.name, tree)
        if path.name in ("cpu_library.py", "cuda_library.py"):
            yield from path.parent.rglob("*.cc")
            yield from path.parent.rglob("*.h")
    elif path.suffix in (".cc", ".h"):
        for line in path.read_text().splitlines():
            if line.startswith('#include "'):
                yield tree / "plugins" / line.split('"')[1]


class Runtime(ast.NodeTransformer):
    """Leaves out what only a type checker imports."""

    def visit_If(self, node: ast.If) -> ast.AST | None:
        return None if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING" else node


def files_of(name: str, tree: Path) -> set[Path]:
    """The file of a module or of the module that a name is in, and the packages above it."""
    parts = name.split(".")
    if parts[0] != "kvfold":
        return set()
    files = {tree / "__init__.py"}
    for depth in range(1, len(parts)):
        path = tree.joinpath(*parts[1 : depth + 1])
        files |= {found for found in (path / "__init__.py", path.with_suffix(".py")) if found.is_file()}
    return files


def stages_stale(tree: Path, file: str, change: Callable[[str], str]) -> set[str]:
    before, path = hashes(tree), tree / file
    text = path.read_text()
    path.write_text(change(text))
    after = hashes(tree)
    path.write_text(text)
    return {name for name in MODULES if before[name] != after[name]}


def test_the_report_s_stage_leaves_a_healed_checkpoint_alone(tree: Path) -> None:
    stale = stages_stale(tree, "pipeline/stages/report.py", lambda text: text + "\nCHANGED = 1\n")
    assert stale == {target_stage("report", target) for target in TARGETS}
    assert "heal" in stages_stale(tree, "export/heal/heal.py", lambda text: text + "\nCHANGED = 1\n")


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("export/heal/heal.py", '"""', '"""Another word. '),
        ("export/heal/heal.py", "\n\n\ndef ", "\n\n\n# A comment.\ndef "),
        ("export/heal/heal.py", "    return ", "    return   "),
        ("plugins/cpu/isa.cc", "\n#include", "\n// A comment.\n#include"),
        ("plugins/cpu/isa.cc", "  return ", "     return /* the best */ "),
    ],
)
def test_comments_docstrings_and_formatting_do_not_count(tree: Path, file: str, old: str, new: str) -> None:
    assert old in (tree / file).read_text()
    assert stages_stale(tree, file, lambda text: text.replace(old, new, 1)) == set()


@pytest.mark.parametrize(
    ("file", "stage"),
    [
        ("pipeline/quality/evaluate/last_words.txt", "evaluate-cpu"),
        ("pipeline/quality/evaluate/filler.txt", "evaluate-cpu"),
        ("pipeline/show/templates/report.html.j2", "report-cpu"),
        ("plugins/onnxruntime/custom_op.h", "validate-cpu"),
        ("plugins/cpu/int8_linear/int8_linear_avx2.cc", "validate-cpu"),
        ("plugins/cuda/kernels/decode.py", "build-tensorrt"),
        ("pipeline/build/tensorrt/build_worker.py", "build-tensorrt-rtx"),
    ],
)
def test_what_a_stage_reads_and_compiles_counts(file: str, stage: str) -> None:
    assert ROOT / file in source_files(MODULES[stage])


def test_a_stage_does_not_depend_on_what_it_does_not_import() -> None:
    files = {path.relative_to(ROOT).as_posix() for path in source_files(MODULES["quantize"])}
    assert not any(file.startswith(("export/heal", "export/graph", "pipeline/report")) for file in files)
    assert "pipeline/stages/order.py" not in files

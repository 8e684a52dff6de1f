"""What decides that a stage runs again: outside files, and every source file that its result comes from."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from kvfold.export.quantize.quantize_settings import QuantizeSettings
from kvfold.pipeline.recipe.recipe import DEMO_MODEL, HealSection, ModelSection
from kvfold.pipeline.stages import stage_work
from kvfold.pipeline.stages.stage_inputs import EVERY_STAGE
from kvfold.pipeline.stages.stages import STAGES
from kvfold.pipeline.studies.ablation.ablation import METHOD_CODE
from kvfold.pipeline.studies.cost import Yardstick, cost_stage
from kvfold.pipeline.studies.search.search import MEASURING_CODE
from kvfold.pipeline.workspace.stage import SOURCE_ROOT, Stage
from kvfold.pipeline.workspace.workspace import Workspace
from tests.pipeline.fake_stages import fake_recipe

# Not followed: errors, and how a file is put in place, decide no result; settings, file names and the version
# are in a stage's hash by value.
BY_VALUE = {
    "export/search/search_settings.py",
    "plugins/__init__.py",
    "plugins/contract/errors.py",
    "plugins/contract/record.py",
    "plugins/contract/version.py",
    "plugins/contract/write_aside.py",
    "pipeline/recipe/recipe.py",
    "pipeline/recipe/recipe_sections.py",
    "runtime/bundle.py",
}


def imported(tree: ast.AST) -> Iterator[str]:
    """First-party modules that code imports at any depth, but for annotations."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        yield from imported(node)


def files_of(modules: Iterator[str]) -> set[str]:
    """Source files of first-party modules; packages are docstrings and re-exports, followed like the rest."""
    paths = [SOURCE_ROOT.joinpath(*module.split(".")) for module in modules]
    found = [path / "__init__.py" if path.is_dir() else path.with_suffix(".py") for path in paths]
    return {path.relative_to(SOURCE_ROOT).as_posix() for path in found if path.is_file()}


def body_files(stage: Stage) -> set[str]:
    """What a stage's function imports itself, or through another function of `pipeline.stages.stage_work`."""
    names = [stage.run.__name__, *stage.run.__code__.co_names]
    functions = [vars(stage_work)[name] for name in names if inspect.isfunction(vars(stage_work).get(name))]
    trees = [ast.parse(textwrap.dedent(inspect.getsource(function))) for function in functions]
    return {file for tree in trees for file in files_of(imported(tree))}


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_a_stage_s_code_covers_all_that_it_imports(stage: Stage) -> None:
    assert set(EVERY_STAGE) <= set(stage.code)
    assert uncovered(stage.code, body_files(stage)) == []


def test_a_cost_s_code_covers_all_that_it_imports() -> None:
    """Of a method that folds; what a rung reads counts by content, so it has less to cover."""
    yardstick = Yardstick(Workspace(fake_recipe(), Path()))
    stage = cost_stage("methods/any", yardstick, lambda: pytest.fail("not run"), [], METHOD_CODE)
    assert {"pipeline/studies/cost.py", "pipeline/quality", "export/fold"} <= set(stage.code)
    assert uncovered(stage.code, set()) == []


def test_a_search_measures_anew_where_anything_that_measures_was_changed() -> None:
    assert uncovered(MEASURING_CODE, set()) == []


def uncovered(code: Collection[str], files: set[str]) -> list[str]:
    """What `files` and some code import, beyond what is in that code."""

    def covered(file: str) -> bool:
        return any(file == entry or file.startswith(f"{entry}/") for entry in code)

    listed = [SOURCE_ROOT / entry for entry in code if entry not in BY_VALUE.union(EVERY_STAGE)]
    for source in (file for path in listed for file in (path.rglob("*") if path.is_dir() else [path])):
        if source.suffix == ".py":
            files = files | files_of(imported(ast.parse(source.read_text())))
    return sorted(file for file in files - BY_VALUE if not covered(file))


def test_healing_depends_on_how_int8_is_calibrated_only_where_it_rounds() -> None:
    (heal,) = (stage for stage in STAGES if stage.name == "heal")

    def described(int8_tokens: int, smooth: bool) -> object:
        section = HealSection(int8_tokens=int8_tokens)
        quantize = QuantizeSettings(smooth=smooth)
        return heal.settings(fake_recipe().model_copy(update={"heal": section, "quantize": quantize}))

    assert described(0, smooth=True) == described(0, smooth=False)
    assert described(9, smooth=True) != described(9, smooth=False)


def describe(source: str) -> object:
    recipe = fake_recipe().model_copy(update={"model": ModelSection(source=source)})
    return STAGES[0].settings(recipe)


def test_a_tokenizer_beside_a_gguf_counts(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_text("weights")
    before = describe(str(tmp_path / "model.gguf"))
    (tmp_path / "tokenizer.json").write_text("{}")
    assert describe(str(tmp_path / "model.gguf")) != before


def test_the_demo_model_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = describe(DEMO_MODEL)
    (tmp_path / DEMO_MODEL).mkdir()
    (tmp_path / DEMO_MODEL / "config.json").write_text("{}")
    assert describe(DEMO_MODEL) == before

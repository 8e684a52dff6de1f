"""Bundles that several rooms' tests look at; whoever changes one works on a copy."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvfold.pipeline.stages.order import STAGES
from kvfold.pipeline.workspace.stage import requirements
from tests.pipeline.tiny_bundles import REPORT, run_recipe, write_recipes


@pytest.fixture(scope="session")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `tiny_bundles.write_recipes`."""
    folder = tmp_path_factory.mktemp("recipes")
    write_recipes(folder)
    return folder


@pytest.fixture(scope="session")
def exact_bundle(recipes: Path) -> Path:
    """A bundle with windows, float32 caches and float32 linears: the engine must be the folded model."""
    every = {REPORT, *requirements(REPORT, STAGES)}
    assert [outcome.ran for outcome in run_recipe(recipes, "exact", recipes / "exact")] == [True] * len(every)
    return recipes / "exact"


@pytest.fixture(scope="session")
def small_bundle(recipes: Path) -> Path:
    """A bundle with everything folded and int8."""
    run_recipe(recipes, "small", recipes / "small")
    return recipes / "small"

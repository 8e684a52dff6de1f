"""What decides that a stage runs again: settings, outside files, and every source file of its result."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvfold.export.quantize.quantize_settings import QuantizeSettings
from kvfold.pipeline.machine.targets import TARGETS
from kvfold.pipeline.recipe.recipe import DEMO_MODEL, HealSection, ModelSection
from kvfold.pipeline.stages.order import STAGES
from kvfold.pipeline.workspace.stage import Stage
from tests.pipeline.fake_stages import fake_recipe


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_a_stage_stands_behind_those_that_it_needs(stage: Stage) -> None:
    names = [each.name for each in STAGES]
    assert {names.index(need) for need in stage.needs} <= set(range(names.index(stage.name)))
    assert len(set(names)) == len(names)


def test_no_two_stages_of_a_recipe_write_one_file() -> None:
    for target in TARGETS:
        files = [file for stage in STAGES if stage.target in (None, target) for file in stage.files]
        assert len(set(files)) == len(files)


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


def test_a_bundle_inside_of_a_model_s_folder_is_no_part_of_the_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    before = describe(str(tmp_path))
    (tmp_path / "bundles" / "x").mkdir(parents=True)
    (tmp_path / "bundles" / "x" / "manifest.json").write_text("{}")
    assert describe(str(tmp_path)) == before
    (tmp_path / "model.safetensors").write_text("")
    assert describe(str(tmp_path)) != before


def test_the_demo_model_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = describe(DEMO_MODEL)
    (tmp_path / DEMO_MODEL).mkdir()
    (tmp_path / DEMO_MODEL / "config.json").write_text("{}")
    assert describe(DEMO_MODEL) == before

"""GPU tests' recipes fit their targets, and all that comes before the GPU is computed; without one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kvfold.pipeline.machine.targets import TARGETS
from kvfold.pipeline.recipe.load_recipe import load_recipe
from kvfold.plugins.contract.errors import RecipeError
from tests.gpu.tiny_bundle import RECIPES, TinyBundle
from tests.tiny_model import VOCAB_SIZE

BUILT_FOR = [(name, target) for name, recipe in RECIPES.items() for target in recipe.targets]


@pytest.mark.parametrize(("name", "target"), BUILT_FOR)
def test_a_gpu_test_s_recipe_fits_its_target(name: str, target: str, tmp_path: Path) -> None:
    architectures = (89,) if TARGETS[target].takes_architectures else ()
    assert TinyBundle(tmp_path, name).load(target, architectures).target == target


def test_every_target_is_tested_on_a_gpu() -> None:
    assert {target for _, target in BUILT_FOR} == TARGETS.keys()


def test_a_recipe_is_not_read_for_a_target_that_it_does_not_fit(tmp_path: Path) -> None:
    tiny = TinyBundle(tmp_path, "horizon-sinks-float16")
    with pytest.raises(AssertionError, match="name cpu in RECIPES"):
        tiny.load("cpu")
    with pytest.raises(RecipeError, match="stores its KV as float16, target cpu reads int8, float32"):
        load_recipe(str(tiny.recipe), "cpu")


def test_what_the_cuda_engine_is_compared_with_is_there_before_it_runs(tmp_path: Path) -> None:
    tiny = TinyBundle(tmp_path, "horizon-nothing-bfloat16")
    assert (tiny.build("cuda", (80,)) / "model.onnx").is_file()
    assert tiny.texts.shape == (4, 96)
    assert tiny.folded_logits.shape == (4, 96, VOCAB_SIZE) and np.isfinite(tiny.folded_logits).all()

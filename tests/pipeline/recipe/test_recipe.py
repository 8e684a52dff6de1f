"""Recipes: the shipped ones load, and every mistake is named with its key, its value and what to do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from kvfold.pipeline.machine.targets import TARGETS
from kvfold.pipeline.recipe.load_recipe import load_recipe
from kvfold.pipeline.recipe.plan_section import WrittenPlan, plan_for
from kvfold.pipeline.recipe.recipe import Recipe
from kvfold.pipeline.recipe.recipe_files import shipped_recipes
from kvfold.plugins.contract.attention_shape import AttentionShape
from kvfold.plugins.contract.errors import PlanError, RecipeError
from kvfold.plugins.contract.plan_presets import Preset, PresetName

SHAPE = AttentionShape(num_hidden_layers=4, num_attention_heads=6, num_key_value_heads=2, head_dim=16)


def write(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_load_and_give_a_plan(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    shape = AttentionShape(num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, head_dim=64)
    assert len(plan_for(recipe.plan, shape).layers) == 30


def test_there_is_a_recipe_for_every_preset_and_one_whose_plan_is_written() -> None:
    plans = {name: load_recipe(name).plan for name in shipped_recipes()}
    presets = {plan.preset for plan in plans.values() if isinstance(plan, Preset)}
    assert presets == set(get_args(PresetName)) - {"character"}
    assert isinstance(plans["character"], WrittenPlan)


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("modle: {source: demo}\nplan: {preset: mqa}", "modle", "did you mean 'model'?"),
        ("model: {sorce: demo}\nplan: {preset: mqa}", "model.sorce", "did you mean 'source'?"),
        (
            "model: {source: demo}\nplan: {preset: horizon, sliding_windw: 64}",
            "sliding_windw",
            "did you mean 'sliding_window'?",
        ),
        (
            "model: {source: demo}\nplan: {preset: mqa}\nvalidate: {thresholds: {max_perplexity: 1.1}}",
            "validate.thresholds.max_perplexity",
            "did you mean 'max_perplexity_ratio'?",
        ),
        ("model: {source: demo}\nplan: {preset: mqa}\nheal: {tokns: 3}", "tokns", "did you mean 'tokens'?"),
        ("model: {source: demo}\nplan: {preset: mqa}\nheal: {seconds: 0}", "heal.seconds", "given: 0"),
        (
            "model: {source: demo}\nplan: {preset: mqa}\nheal: {held_out: {}}",
            "held_out is read by a training by the clock alone",
            "set seconds, or remove it",
        ),
        (
            "model: {source: demo}\nplan: {preset: mqa}\nheal: {text: {source: absent.jsonl}}",
            "heal.text.source",
            "absent.jsonl",
        ),
        (
            "model: {source: demo}\nplan: {preset: mqa}\nheal: {adapter: absent.safetensors}",
            "heal.adapter",
            "absent.safetensors",
        ),
        (
            "model: {source: demo}\nplan: {preset: mqa}\nheal: {adapter: mine.yaml, tokens: 3}",
            "heal.tokens",
            "unknown key",
        ),
        (
            "model: {source: demo}\nplan: {preset: mqa}\nquantize: {linears: none}\nheal: {int8_tokens: 9}",
            "heal.int8_tokens is 9",
            "stores its KV as float32; set one of them to int8",
        ),
        ("model: {source: demo}\nplan: {preset: mqa}\nzzz: 1", "zzz", "use one of"),
        (
            "model: {source: demo}\nplan: {preset: mqa}\nevaluate: {retrieval: {prompts: 2}}",
            "evaluate.retrieval.prompts",
            "use one of lengths, depths, trials, keys",
        ),
        ("model: {source: demo}", "plan", "is required"),
        ("model: {source: demo}\nplan: {preset: mqaa}", "plan", "mqaa"),
        (
            "model: {source: demo}\nplan: {preset: mqa}\ncalibration: {tokens: -3}",
            "calibration.0.tokens",
            "-3",
        ),
        ("model: {source: demo}\nplan: {preset: mqa}\ntarget: gpu", "recipe", "use one of cpu"),
        ("model: {source: demo}\nplan: {preset: mqa}\nname: x", "name", "named by its file"),
        ("- 1", "mine.yaml", "list"),
        ("a: [", "mine.yaml", "cannot be read as YAML"),
        ("? [a, b]\n: 1", "cannot be read as YAML", "unhashable key"),
        ("model: {source: demo}\nplan: {preset: mqa}\nplan: {}", "'plan' stands twice", "line 3"),
        ("model: {source: demo}\nplan: {preset: mqa}\npage: 2024-13-01", "mine.yaml", "month"),
        (
            "model: {source: demo}\nplan: {preset: mqa}\ncalibration: {source: absent.txt}",
            "calibration.source",
            "absent.txt",
        ),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, where: str, what: str) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe(write(tmp_path, text))
    assert where in str(error.value)
    assert what in str(error.value)


def test_an_unknown_name_lists_the_shipped_recipes() -> None:
    with pytest.raises(RecipeError, match=", ".join(shipped_recipes())):
        load_recipe("no-such-recipe")


def test_relative_paths_are_taken_from_the_recipes_folder(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "text.txt").write_text("text")
    text = "model: {source: model}\nplan: {preset: mqa}\ncalibration: {source: text.txt}"
    recipe = load_recipe(write(tmp_path, text))
    assert recipe.model.source == str(tmp_path / "model")
    assert recipe.calibration[0].source == str(tmp_path / "text.txt")
    assert recipe.validate_on.source == "generate"


def test_a_tilde_is_the_user_s_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "model").mkdir(parents=True)
    (tmp_path / "home" / "text.txt").write_text("text")
    text = "model: {source: ~/model}\nplan: {preset: mqa}\ncalibration: {source: ~/text.txt}"
    recipe = load_recipe(write(tmp_path, text))
    assert recipe.model.source == str(tmp_path / "home" / "model")
    assert recipe.calibration[0].source == str(tmp_path / "home" / "text.txt")


def test_a_section_that_is_none_is_refused_with_architectures_too(tmp_path: Path) -> None:
    text = "model: {source: demo}\nplan: {preset: mqa}\ntensorrt: float16"
    with pytest.raises(RecipeError, match=r"tensorrt: .*float16"):
        load_recipe(write(tmp_path, text), "tensorrt-rtx", (80,))


def written(tmp_path: Path, *layers: str) -> Recipe:
    lines = "".join(f"    - {layer}\n" for layer in layers)
    return load_recipe(write(tmp_path, f"model: {{source: demo}}\nplan:\n  layers:\n{lines}"))


def test_a_plan_written_by_hand(tmp_path: Path) -> None:
    own = "{donor: %d, num_key_value_heads: 2}"
    recipe = written(tmp_path, own % 0, own % 1, own % 1, own % 3)
    plan = plan_for(recipe.plan, SHAPE)
    assert [layer.donor for layer in plan.layers] == [0, 1, 1, 3]


def test_a_written_plan_that_breaks_a_law_is_refused(tmp_path: Path) -> None:
    recipe = written(tmp_path, *["{donor: 1, num_key_value_heads: 2}"] * 4)
    with pytest.raises(PlanError, match="layer 0: donor 1 comes later"):
        plan_for(recipe.plan, SHAPE)
    recipe = written(tmp_path, "{donor: 0, num_key_value_heads: 2}")
    with pytest.raises(PlanError, match="1 entries, the model has 4 layers"):
        plan_for(recipe.plan, SHAPE)


def test_a_written_plan_that_widens_the_checkpoints_own_window_is_refused(tmp_path: Path) -> None:
    windowed = replace(SHAPE, sliding_windows=(64, None, None, None))
    layer = "{{donor: {}, num_key_value_heads: 2}}"
    recipe = written(tmp_path, *(layer.format(index) for index in range(4)))
    with pytest.raises(PlanError, match=r"layer 0: sliding_window is absent .*, the checkpoint's own is 64"):
        plan_for(recipe.plan, windowed)


@pytest.mark.parametrize(
    ("target", "plan", "problem"),
    [
        (
            "tensorrt",
            "{preset: mqa}",
            "stores its KV as float32, target tensorrt reads int8, float16, bfloat16",
        ),
        (
            "cpu",
            "{preset: mqa, kv_dtype: float16}",
            "stores its KV as float16, target cpu reads int8, float32",
        ),
    ],
)
def test_a_plan_that_its_target_cannot_serve_is_refused(
    tmp_path: Path, target: str, plan: str, problem: str
) -> None:
    """Before minutes of export."""
    with pytest.raises(RecipeError, match=problem):
        load_recipe(write(tmp_path, f"model: {{source: demo}}\nplan: {plan}\ntarget: {target}"))


@pytest.mark.parametrize("dials", ["", ", sink_size: 0, sliding_window: 256, head_sink: true"])
@pytest.mark.parametrize("target", TARGETS)
def test_sinks_of_either_kind_serve_every_target(tmp_path: Path, dials: str, target: str) -> None:
    text = f"model: {{source: demo}}\nplan: {{preset: horizon{dials}}}\ntarget: {target}"
    assert load_recipe(write(tmp_path, text)).target == target


def test_gpus_to_build_for_are_named_in_the_section_of_the_target(tmp_path: Path) -> None:
    path = write(tmp_path, "model: {source: demo}\nplan: {preset: horizon}\ncuda: {architectures: [90, 75]}")
    assert load_recipe(path, "cuda").cuda.architectures == (75, 90)
    assert load_recipe(path, "cuda", (86, 80)).cuda.architectures == (80, 86)
    named = load_recipe(path, "tensorrt-rtx", (86,))
    assert (named.tensorrt.architectures, named.cuda.architectures) == ((86,), (75, 90))
    with pytest.raises(RecipeError, match="--sm is for the target cuda or tensorrt-rtx, this one is cpu"):
        load_recipe(path, "cpu", (86,))


def test_a_searched_plan_s_wide_caches_are_of_the_target_s_activations(tmp_path: Path) -> None:
    path = write(
        tmp_path, "model: {source: demo}\nplan: {preset: horizon}\ncuda: {activation_dtype: bfloat16}"
    )
    dtypes = {target: load_recipe(path, target).float_dtype for target in TARGETS}
    assert dtypes == {
        "cpu": "float32", "cuda": "bfloat16", "tensorrt": "float16", "tensorrt-rtx": "float16"
    }  # fmt: skip


def test_text_must_be_longer_than_the_window_of_a_head_sink(tmp_path: Path) -> None:
    preset = "{preset: character, sink_size: 0, head_sink: true, sliding_window: %d}"
    written = "{layers: [{donor: 0, num_key_value_heads: 1, head_sink: true, sliding_window: 512}]}"
    text = "model: {source: demo}\nplan: %s\ncalibration: {sequence_length: %d}\nheal: {}"
    for plan, length, key in (
        (preset % 512, 512, "calibration"),
        (preset % 1024, 2048, "heal.text"),
        (written, 512, "calibration"),
    ):
        with pytest.raises(RecipeError, match=f"{key}.sequence_length is .* hides nothing"):
            load_recipe(write(tmp_path, text % (plan, length)))
    load_recipe(write(tmp_path, text % (preset % 512, 1024)))
    (tmp_path / "healed.safetensors").touch()
    named = text.replace("heal: {}", "heal: {adapter: healed.safetensors}")
    load_recipe(write(tmp_path, named % (preset % 1024, 512)))  # neither fits nor trains any

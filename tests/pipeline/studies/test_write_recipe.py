"""A recipe written with another plan: everything else as it was, paths that hold, and no surprise in YAML."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvfold.pipeline.recipe.load_recipe import load_recipe
from kvfold.pipeline.recipe.plan_section import WrittenPlan
from kvfold.pipeline.studies.search.write_recipe import write_recipe
from kvfold.plugins.contract.fold_plan import FoldPlan, LayerPlan

LAYERS = (
    LayerPlan(donor=0, num_key_value_heads=1, sliding_window=32, sink_size=4, kv_dtype="int8"),
    LayerPlan(donor=0, num_key_value_heads=1, sliding_window=32, sink_size=4, kv_dtype="int8"),
    LayerPlan(donor=2, num_key_value_heads=2),
)
PLAN = FoldPlan(num_attention_heads=4, head_dim=16, layers=LAYERS)
BLOCK = """\
# What this is.
model:
  source: model.gguf
plan:
  preset: horizon  # the old plan
  sliding_window: 64

# About the text.
calibration: {source: text.txt, tokens: 512}
evaluate:
  last_words: shipped
"""


def rewrite(folder: Path, text: str, output: Path, plan: FoldPlan = PLAN) -> str:
    (folder / "model.gguf").touch()
    (folder / "text.txt").write_text("a cab")
    source = folder / "mine.yaml"
    source.write_text(text)
    before = load_recipe(str(source))
    write_recipe(source, before, plan, "because", output)
    after = load_recipe(str(output))
    assert isinstance(after.plan, WrittenPlan)
    assert (after.plan.layers, after.plan.page_size) == (plan.layers, plan.page_size)
    assert after.model_copy(update={"name": before.name, "plan": before.plan}) == before
    return output.read_text()


@pytest.mark.parametrize(
    "text",
    [
        BLOCK,
        BLOCK.replace(
            "plan:\n  preset: horizon  # the old plan\n  sliding_window: 64\n", "plan: {preset: mqa}\n"
        ),
        "{model: {source: model.gguf}, plan: {preset: mqa}, calibration: {source: text.txt}}",
        "model: {source: model.gguf}\nplan:\n  preset: mqa",
    ],
    ids=["block", "flow plan", "flow", "at the end"],
)
def test_all_but_the_plan_stays(text: str, tmp_path: Path) -> None:
    written = rewrite(tmp_path, text, tmp_path / "new.yaml")
    assert (
        "  {donor: 0, num_key_value_heads: 1, sliding_window: 32, sink_size: 4, kv_dtype: int8},  # 1\n"
        in written
    )
    assert "preset" not in written and "# because" in written
    assert all(line in written for line in text.splitlines() if line.startswith("# "))


def test_a_plan_is_replaced_again_and_again(tmp_path: Path) -> None:
    first = rewrite(tmp_path, BLOCK, tmp_path / "new.yaml")
    assert rewrite(tmp_path, first, tmp_path / "newer.yaml") == first
    paged = PLAN.model_copy(update={"page_size": 32})
    assert "plan: {page_size: 32, layers: [" in rewrite(tmp_path, first, tmp_path / "newest.yaml", paged)


def test_relative_paths_hold_from_another_folder(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    written = rewrite(tmp_path, BLOCK, tmp_path / "deep" / "new.yaml")
    assert "source: ../model.gguf\n" in written
    assert "calibration: {source: ../text.txt, tokens: 512}" in written
    assert "last_words: shipped" in written
    listed = BLOCK.replace(
        "calibration: {source: text.txt, tokens: 512}",
        "calibration: [{source: generate}, {source: text.txt}]",
    )
    assert listed != BLOCK
    written = rewrite(tmp_path, listed, tmp_path / "deep" / "newer.yaml")
    assert "calibration: [{source: generate}, {source: ../text.txt}]" in written


def test_anchors_and_aliases_may_stand_in_a_recipe(tmp_path: Path) -> None:
    plan = "plan: {preset: mqa, sliding_window: *w}"
    text = f"model: {{source: model.gguf}}\nsearch: {{sliding_windows: [&w 64]}}\n{plan}\n"
    assert "sliding_windows: [&w 64]" in rewrite(tmp_path, text, tmp_path / "new.yaml")
    anchored = "model: {source: &s model.gguf}\nplan: &p {preset: mqa}\ncalibration: {source: text.txt}\n"
    rewrite(tmp_path, anchored, tmp_path / "newer.yaml")
    text = "calibration: &t {source: text.txt}\nheal: {text: *t}\n"
    shared = f"model: {{source: model.gguf}}\nplan: {{preset: mqa}}\n{text}"
    (tmp_path / "deep").mkdir()
    written = rewrite(tmp_path, shared, tmp_path / "deep" / "new.yaml")
    assert text.replace("text.txt", "../text.txt") in written

"""The whole pipeline on a tiny random llama: recipe in, bundle, engine and report out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from transformers import LlamaForCausalLM

from kvfold import LLM, SamplingParams
from kvfold.pipeline.cli import cli
from kvfold.pipeline.report.report_results import read_results
from kvfold.pipeline.workspace.stage import target_stage
from kvfold.plugins.contract.errors import BundleError, KvfoldError
from kvfold.runtime.bundle import open_bundle
from kvfold.runtime.engine.engine_files import open_engine
from kvfold.runtime.engine.onnxruntime_engine import OnnxRuntimeEngine
from tests.paging import Pager
from tests.pipeline.fake_stages import contents
from tests.pipeline.tiny_bundles import run_recipe, write_recipes


def test_the_engine_computes_the_folded_models_logits(exact_bundle: Path) -> None:
    results = read_results(exact_bundle)
    assert all(verdict.passed for verdict in results.verdicts), results.verdicts
    measured = results.measurements.comparison("folded", "engine")
    assert measured.max_logit_difference <= 2e-3
    assert measured.top1_agreement > 0.99
    assert results.measurements.reused_tokens > 0, "no later turn was served from the cache"


def test_learned_sinks_reach_the_engine(recipes: Path) -> None:
    recipe = (recipes / "exact.yaml").read_text().replace("sink_size: 4", "sink_size: 0, head_sink: true")
    (recipes / "learned.yaml").write_text(recipe)
    run_recipe(recipes, "learned", recipes / "learned")
    results = read_results(recipes / "learned")
    assert all(verdict.passed for verdict in results.verdicts), results.verdicts
    assert results.measurements.reused_tokens > 0
    drawn = CliRunner().invoke(cli, ["inspect", str(recipes / "learned")])
    assert drawn.output.count("32 + learned") == 2


def test_biases_of_every_linear_reach_the_engine(tmp_path: Path) -> None:
    """Float against transformers; folded and in int8, with another KV head, against the folded model."""
    write_recipes(tmp_path, "llama-biased")
    recipe = (tmp_path / "exact.yaml").read_text().replace("preset: horizon", "preset: identity")
    (tmp_path / "identity.yaml").write_text(recipe)
    run_recipe(tmp_path, "identity", tmp_path / "identity", until=target_stage("build", "cpu"))
    files = open_engine(open_bundle(tmp_path / "identity"), "cpu")
    tokens = np.random.default_rng(1).integers(0, 97, 200)
    engine = OnnxRuntimeEngine.load(files, 1 << 20)
    logits = engine.execute(Pager(files.plan, 16).step({0: tokens.tolist()}))
    original = LlamaForCausalLM.from_pretrained(tmp_path / "model")
    assert original.model.layers[3].self_attn.o_proj.bias.abs().min() > 0
    with torch.inference_mode():
        expected = original(torch.from_numpy(tokens)[None]).logits[0]
    np.testing.assert_allclose(logits, expected, atol=2e-3)

    run_recipe(tmp_path, "small", tmp_path / "small")
    results = read_results(tmp_path / "small")
    assert all(verdict.passed for verdict in results.verdicts), results.verdicts


def test_everything_folded_still_matches_its_own_engine(small_bundle: Path) -> None:
    results = read_results(small_bundle)
    assert all(verdict.passed for verdict in results.verdicts), results.verdicts
    assert results.fold_errors
    assert [row.context_length for row in results.kv_bytes] == [1, 1024, 2048, 8192]
    assert 7 < results.kv_bytes[-1].reduction < 8  # two of eight heads, half the bytes, a small window


def test_unchanged_stages_are_skipped_and_changed_ones_are_not(small_bundle: Path, recipes: Path) -> None:
    assert not any(outcome.ran for outcome in run_recipe(recipes, "small", recipes / "small"))
    shutil.copytree(small_bundle, recipes / "copy")
    (recipes / "other.yaml").write_text((recipes / "small.yaml").read_text() + "fold: {ridge: 0.01}\n")
    outcomes = run_recipe(recipes, "other", recipes / "copy", until="quantize")
    assert [outcome.name for outcome in outcomes if outcome.ran] == ["fold", "heal", "quantize"]
    with pytest.raises(BundleError, match="holds no engine/cpu"):  # it was built from the old fold
        LLM.load(recipes / "copy")


def test_the_bundle_has_its_documented_files(small_bundle: Path) -> None:
    open_bundle(small_bundle, verify="full")
    for name in (
        "config.json",
        "fold.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "weights.json",
        "work/smoothing.safetensors",
        "scales.safetensors",
        "quantization.json",
        "work/graph.onnx",
        "engine/cpu/engine.json",
        "engine/cpu/model.onnx",
        "report/cpu/index.html",
        "report/cpu/results.json",
    ):
        assert (small_bundle / name).is_file(), name
    assert not (small_bundle / "model.onnx").exists(), "nobody asked for the graph with its weights"
    tools = json.loads((small_bundle / "manifest.json").read_text())["tools"]
    assert {"torch", "onnxruntime"} <= tools.keys()


def test_the_bundle_generates(exact_bundle: Path) -> None:
    llm = LLM.load(exact_bundle)
    params = SamplingParams(max_tokens=8, ignore_eos=True)
    text = "the cab of the folded cache dab tab abacus the a cab of the folded cache"
    cold, warm = llm.generate(text, params)[0], llm.generate(text, params)[0]
    assert len(cold.token_ids) == 8
    assert cold.token_ids == warm.token_ids
    assert warm.usage.reused_tokens > 0


@pytest.mark.parametrize(
    ("setting", "bad", "error"),
    [
        ("source: model", "source: absent.gguf", r"absent\.gguf does not exist; name a folder"),
        ("tokens: 512", "tokens: 9000000", r"text\.txt gives [\d,]+ tokens, .* are needed; add text"),
        ("sequence_length: 64", "sequence_length: 4096", "sequences of 4096; .*sequences of 2 to 256 tokens"),
    ],
)
def test_bad_input_stops_with_a_typed_error_and_keeps_the_bundle(
    recipes: Path, tmp_path: Path, setting: str, bad: str, error: str
) -> None:
    text = (recipes / "small.yaml").read_text()
    run_recipe(recipes, "small", tmp_path, until="calibration")
    before = contents(tmp_path)
    (recipes / "bad.yaml").write_text(text.replace(setting, bad, 1))
    with pytest.raises(KvfoldError, match=error):
        run_recipe(recipes, "bad", tmp_path, until="fold")
    assert contents(tmp_path) == before
    open_bundle(tmp_path, verify="full")

"""The whole pipeline on a tiny random llama: recipe in, bundle, engine and report out."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kvfold import LLM, SamplingParams
from kvfold.pipeline.cli import cli
from kvfold.pipeline.recipe.load_recipe import load_recipe
from kvfold.pipeline.report.report_results import read_results
from kvfold.pipeline.stages.order import STAGES
from kvfold.pipeline.workspace.run_stages import StageOutcome, run_stages
from kvfold.pipeline.workspace.stage import requirements, target_stage
from kvfold.plugins.contract.errors import BundleError, KvfoldError, ValidationError
from kvfold.runtime.bundle import open_bundle
from tests.export.tiny_checkpoints import random_model, write_folder
from tests.pipeline.fake_stages import QuietDisplay, contents

RECIPE = """
model: {source: model}
plan: {preset: %s, sliding_window: 32, sink_size: 4, global_every: 2}
calibration: {source: text.txt, tokens: 512, sequence_length: 64}
quantize: {linears: %s}
validate:
  source: text.txt
  tokens: 384
  sequence_length: 192
  prefill_chunk: 40
  thresholds: {max_perplexity_ratio: null, max_engine_kl: %s, max_logit_difference: %s}
"""
WORDS = ("the", "a", "cab", "tab", "dab", "of", "folded", "cache", "abacus")
REPORT = target_stage("report", "cpu")
ALL = {REPORT, *requirements(REPORT, STAGES)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint and a text, beside the recipes that name them."""
    folder = tmp_path_factory.mktemp("end_to_end")
    write_folder(folder / "model", random_model("llama", num_hidden_layers=4))
    words = random.Random(0).choices(WORDS, k=4000)
    (folder / "text.txt").write_text(" ".join(words))
    (folder / "exact.yaml").write_text(RECIPE % ("horizon, kv_dtype: float32", "none", 1e-4, 2e-3))
    (folder / "small.yaml").write_text(RECIPE % ("character", "int8", 0.05, "null"))
    (folder / "strict.yaml").write_text(RECIPE % ("character", "int8", 1e-9, "null"))
    return folder


def run(folder: Path, name: str, bundle: str, until: str = REPORT) -> list[StageOutcome]:
    recipe = load_recipe(str(folder / f"{name}.yaml"))
    return run_stages(recipe, folder / bundle, STAGES, QuietDisplay(), until)


@pytest.fixture(scope="module")
def exact(folder: Path) -> Path:
    """A bundle with windows, float32 caches and float32 linears: the engine must be the folded model."""
    assert [outcome.ran for outcome in run(folder, "exact", "exact")] == [True] * len(ALL)
    return folder / "exact"


@pytest.fixture(scope="module")
def small(folder: Path) -> Path:
    """A bundle with everything folded and int8."""
    run(folder, "small", "small")
    return folder / "small"


def test_the_engine_computes_the_folded_models_logits(exact: Path) -> None:
    results = read_results(exact)
    assert all(verdict.passed for verdict in results.verdicts), results.verdicts
    measured = results.measurements.comparison("folded", "engine")
    assert measured.max_logit_difference <= 2e-3
    assert measured.top1_agreement > 0.99
    assert results.measurements.reused_tokens > 0, "no later turn was served from the cache"


def test_learned_sinks_reach_the_engine(folder: Path) -> None:
    recipe = (folder / "exact.yaml").read_text().replace("sink_size: 4", "sink_size: 0, head_sink: true")
    (folder / "learned.yaml").write_text(recipe)
    run(folder, "learned", "learned")
    results = read_results(folder / "learned")
    assert all(verdict.passed for verdict in results.verdicts), results.verdicts
    assert results.measurements.reused_tokens > 0
    drawn = invoke("inspect", str(folder / "learned"))
    assert drawn.output.count("32 + learned") == 2


def test_everything_folded_still_matches_its_own_engine(small: Path) -> None:
    results = read_results(small)
    assert all(verdict.passed for verdict in results.verdicts), results.verdicts
    assert results.fold_errors
    assert [row.context_length for row in results.kv_bytes] == [1, 1024, 2048, 8192]
    assert 7 < results.kv_bytes[-1].reduction < 8  # two of eight heads, half the bytes, a small window


def test_unchanged_stages_are_skipped_and_changed_ones_are_not(small: Path, folder: Path) -> None:
    assert not any(outcome.ran for outcome in run(folder, "small", "small"))
    shutil.copytree(small, folder / "copy")
    (folder / "other.yaml").write_text((folder / "small.yaml").read_text() + "fold: {ridge: 0.01}\n")
    ran = [outcome.name for outcome in run(folder, "other", "copy", until="quantize") if outcome.ran]
    assert ran == ["fold", "heal", "quantize"]
    with pytest.raises(BundleError, match="holds no engine/cpu"):  # it was built from the old fold
        LLM.load(folder / "copy")


def test_the_bundle_has_its_documented_files(small: Path) -> None:
    open_bundle(small, verify="full")
    for name in (
        "config.json",
        "fold.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors",
        "scales.safetensors",
        "quantization.json",
        "model.onnx",
        "engine/cpu/engine.json",
        "engine/cpu/model.onnx",
        "report/cpu/index.html",
        "report/cpu/results.json",
    ):
        assert (small / name).is_file(), name
    tools = json.loads((small / "manifest.json").read_text())["tools"]
    assert {"torch", "onnxruntime"} <= tools.keys()


def test_the_report_is_self_contained(small: Path) -> None:
    page = (small / "report" / "cpu" / "index.html").read_text()
    assert page.count("<svg") == 3
    for outside in ("http://", "https://", "<script", "<link", "@import", "url("):
        assert outside not in page


def test_the_report_says_what_was_compared(small: Path) -> None:
    page = " ".join((small / "report" / "cpu" / "index.html").read_text().split())
    assert "384 tokens in sequences of 192; text: text.txt" in page


def test_the_report_lists_linears_that_int8_harms(folder: Path) -> None:
    """With a limit of nearly nothing, every linear is listed, with its precision and error, worst first."""
    (folder / "harmed.yaml").write_text(
        RECIPE % ("character", "int8, max_relative_error: 1.0e-7, max_weight_error: 1.0e-7", 0.05, "null")
    )
    run(folder, "harmed", "harmed")
    quantization = read_results(folder / "harmed").quantization
    page = (folder / "harmed" / "report" / "cpu" / "index.html").read_text()
    assert f"0 of {len(quantization.linears)} linears run in plain int8" in page
    rows = re.findall(r"<tr><td>([\w.]+)</td><td>(\w+)</td>\s*<td>([\d.]+)</td>", page)
    measured = {name: linear.relative_error for name, linear in quantization.linears.items()}
    worst_first = sorted(measured, key=lambda name: -(measured[name] or 0))
    assert rows == [(name, "float32", f"{measured[name]:.3f}") for name in worst_first]


def test_the_bundle_generates(exact: Path) -> None:
    llm = LLM.load(exact)
    params = SamplingParams(max_tokens=8, ignore_eos=True)
    text = "the cab of the folded cache dab tab abacus the a cab of the folded cache"
    cold, warm = llm.generate(text, params)[0], llm.generate(text, params)[0]
    assert len(cold.token_ids) == 8
    assert cold.token_ids == warm.token_ids
    assert warm.usage.reused_tokens > 0


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments))


def test_inspect_draws_recipe_and_bundle_alike(folder: Path, small: Path) -> None:
    from_recipe, from_bundle = invoke("inspect", str(folder / "small.yaml")), invoke("inspect", str(small))
    assert from_recipe.exit_code == from_bundle.exit_code == 0, from_recipe.output
    assert from_recipe.output == from_bundle.output
    assert "layer 0" in from_bundle.output
    assert "8,192 tokens" in from_bundle.output
    assert "4 layers keep 3 KV banks" in from_bundle.output


def test_validate_prints_its_tables_and_fails_on_a_missed_threshold(folder: Path, small: Path) -> None:
    passed = invoke("validate", str(folder / "small.yaml"), "--output", str(small))
    assert passed.exit_code == 0, passed.output
    assert "perplexity" in passed.output
    missed = invoke("validate", str(folder / "strict.yaml"), "--output", str(small))
    assert isinstance(missed.exception, ValidationError)
    assert "max_engine_kl" in str(missed.exception)
    assert (small / "report" / "cpu" / "index.html").read_text().count('class="bad"') == 1


@pytest.mark.parametrize(
    ("setting", "bad", "error"),
    [
        ("source: model", "source: absent.gguf", r"absent\.gguf does not exist; name a folder"),
        ("tokens: 512", "tokens: 9000000", r"text\.txt gives [\d,]+ tokens, .* are needed; add text"),
        ("sequence_length: 64", "sequence_length: 4096", "sequences of 4096; .*sequences of 2 to 256 tokens"),
    ],
)
def test_bad_input_stops_with_a_typed_error_and_keeps_the_bundle(
    folder: Path, tmp_path: Path, setting: str, bad: str, error: str
) -> None:
    text = (folder / "small.yaml").read_text()
    run_stages(load_recipe(str(folder / "small.yaml")), tmp_path, STAGES, QuietDisplay(), until="calibration")
    before = contents(tmp_path)
    recipe = folder / "bad.yaml"
    recipe.write_text(text.replace(setting, bad, 1))
    with pytest.raises(KvfoldError, match=error):
        run_stages(load_recipe(str(recipe)), tmp_path, STAGES, QuietDisplay(), until="fold")
    assert contents(tmp_path) == before
    open_bundle(tmp_path, verify="full")

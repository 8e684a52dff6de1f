"""`kvfold bench --trace` as it is typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from kvfold.pipeline.commands.measure.bench import command
from kvfold.plugins.contract.errors import BundleError, KvfoldError, RequestError
from tests.pipeline.bench.trace.made_up_traces import random_requests, write_requests


def bench(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return write_requests(tmp_path / "trace.jsonl", random_requests(2, 30))


def test_a_recipe_and_a_bundle_find_the_same(recipes: Path, small_bundle: Path, trace: Path) -> None:
    found = []
    for recipe in (recipes / "small.yaml", small_bundle):
        output = trace.parent / f"{recipe.stem}.json"
        options = ("--requests", 20, "--budgets", "1MiB,0.5GiB", "--block-tokens", 64, "--json", output)
        run = bench(recipe, "--trace", trace, *options)
        assert run.exit_code == 0, run.output
        assert "512 MiB" in run.output and "20 requests" in run.output
        result = json.loads(output.read_text())
        assert (result["requests"], result["block_tokens"], result["ends"]) == (20, 64, "chat")
        rates = [
            {name: budget[name] for name in ("bytes", "hit_rate", "ideal", "unfolded")}
            for budget in result["budgets"]
        ]
        assert [rate["bytes"] for rate in rates] == [1 << 20, 1 << 29]
        assert 0 < rates[1]["hit_rate"] <= result["endless"]
        found.append(rates)
    assert found[0] == found[1]


def test_without_a_file_to_write_nothing_is_written(small_bundle: Path, trace: Path) -> None:
    before = sorted(trace.parent.iterdir())
    assert bench(small_bundle, "--trace", trace).exit_code == 0
    assert sorted(trace.parent.iterdir()) == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--budgets", "64MB"], "'64MB' is no amount of bytes; write a number and one of B, KiB, MiB, GiB"),
        (["--budgets", "64MiB,,1GiB"], "'' is no amount of bytes"),
        (["--ends", "random"], "'random' is not one of 'chat', 'whole', 'recorded'"),
        (["--quick"], "--quick: for an engine, and a trace is replayed without one"),
        (["-o", "bundle"], "--output: for an engine"),
        (["--scenario", "own"], "--scenario: for servers"),
        (["--serve", "--budgets", "1GiB"], "--budgets: for a trace without a server"),
    ],
)
def test_options_that_are_wrong_or_would_do_nothing_are_refused(
    options: list[str], said: str, trace: Path
) -> None:
    run = bench("--trace", trace, *options)
    assert run.exit_code == 2
    assert said in run.output


def test_options_of_traces_need_one() -> None:
    run = bench("--requests", 5, "--at-once", 2)
    assert run.exit_code == 2
    assert "--requests, --at-once: for a trace without a server; add --trace" in run.output


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        (("--block-tokens", 100), RequestError, "does not divide 512"),
        (("--at-once", 600), RequestError, "max_num_batched_tokens is 512, below max_num_seqs 600"),
        (("--json", "nowhere/result.json"), BundleError, "nowhere/result.json cannot be written"),
    ],
)
def test_what_cannot_be_done_is_a_typed_error(
    options: tuple[object, ...], error: type[KvfoldError], said: str, small_bundle: Path, trace: Path
) -> None:
    run = bench(small_bundle, "--trace", trace, *options)
    assert isinstance(run.exception, error)
    assert said in str(run.exception)


def test_a_file_that_is_cut_is_named(small_bundle: Path, trace: Path) -> None:
    trace.write_text(trace.read_text()[:-20])
    run = bench(small_bundle, "--trace", trace)
    assert isinstance(run.exception, RequestError)
    assert "trace.jsonl, line 30: the file ends within it" in str(run.exception)

"""Every table of the project in narrow terminals: each cell whole, no line too wide."""

from __future__ import annotations

import ast
import io
import json
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from kvfold.export.quantize.precision import LinearPrecision, Quantization
from kvfold.export.search.choose import Candidate, Horizons, choose_banks
from kvfold.export.search.costs import Cost
from kvfold.pipeline.bench.bench_table import bench_table
from kvfold.pipeline.bench.serving.serve_table import serve_table
from kvfold.pipeline.bench.trace.trace_table import trace_table
from kvfold.pipeline.build.tuning.tuning_tables import broken_ways_table, tuning_table
from kvfold.pipeline.commands.make.heal import loss_table
from kvfold.pipeline.commands.use.doctor import findings_table
from kvfold.pipeline.machine.doctor.finding import Finding
from kvfold.pipeline.machine.gpus import Gpu
from kvfold.pipeline.machine.monitor_view import engine_table, gpu_table, machine_table
from kvfold.pipeline.machine.server_tables import server_tables
from kvfold.pipeline.quality.evaluate import evaluation_tables as evaluation
from kvfold.pipeline.quality.validate.measurements import Verdict
from kvfold.pipeline.quality.validate.quality_tables import full_quality_table, quality_table, verdict_table
from kvfold.pipeline.report.report_tables import fold_error_table, raised_linear_table
from kvfold.pipeline.show.cache_tables import kv_bytes_table, turns_table
from kvfold.pipeline.show.draw_plan import layer_table
from kvfold.pipeline.show.table import Table
from kvfold.pipeline.show.terminal import draw_table
from kvfold.pipeline.studies.ablation.ablation_results import Ablation, Row
from kvfold.pipeline.studies.ablation.ablation_tables import ablation_tables, whole_ablation_table
from kvfold.pipeline.studies.frontier.frontier_tables import frontier_tables, whole_frontier_table
from kvfold.pipeline.studies.frontier.rungs import Frontier
from kvfold.pipeline.studies.search import search_tables as search
from kvfold.pipeline.studies.search.found import Found
from kvfold.plugins.contract.attention_shape import AttentionShape
from kvfold.plugins.contract.kv_savings import kv_bytes
from kvfold.plugins.contract.plan_presets import Preset, build_plan
from kvfold.plugins.cuda.tuned_table import BrokenWay, Choice, TunedTable
from kvfold.runtime.loop.snapshot import RequestView
from kvfold.runtime.metrics import CacheMetrics, Metrics, PoolUsage, PrefixMatch, Usage
from kvfold.runtime.server.caller import ANYONE
from kvfold.runtime.server.ui.server_view import ServerView
from kvfold.runtime.status import EngineStatus
from tests.export.search.made_up_spaces import make_space
from tests.pipeline.bench.serving.test_serve_table import result_of_two_scenarios
from tests.pipeline.bench.test_bench_table import result_of_two
from tests.pipeline.bench.trace.made_up_traces import TRACE_RESULT
from tests.pipeline.quality.made_up_evaluation import EVALUATION
from tests.pipeline.quality.test_quality_tables import MEASUREMENTS
from tests.pipeline.studies.made_up_rungs import make_rung
from tests.root import ROOT
from tests.runtime.server.puppet_llm import PuppetLLM
from tests.runtime.server.served import make_server

TUNED = TunedTable(
    architecture=90,
    card="a card",
    date="2026-01-01",
    triton="3.9",
    sources="a hash",
    choices=(
        Choice(
            kernel="prefill",
            int8_cache=True,
            width=128,
            num_warps=8,
            num_stages=3,
            constants={"ROWS": 128, "KEYS": 64},
            microseconds=1234.5,
            rule_microseconds=2345.6,
        ),
    ),
    broken=(
        BrokenWay(
            kernel="decode",
            int8_cache=False,
            width=64,
            num_warps=4,
            num_stages=2,
            constants={"SPLIT_KEYS": 512, "KEYS": 64},
            error="it did not end in 10 s",
        ),
    ),
)

WIDTHS = (40, 60, 80)
SHAPE = AttentionShape(num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, head_dim=64)
PLANS = [
    build_plan(Preset(preset=preset, **options), SHAPE)
    for preset, options in (
        ("identity", {}),
        ("horizon", {"sliding_window": 1024}),
        ("character", {"sliding_window": 1024, "head_sink": True, "sink_size": 0}),
    )
]
LADDER = Frontier(
    text="the recipe's wiki.test.txt",
    rungs=(make_rung("identity", 188743680, 0.0, 0.001), make_rung("character", 3880000, 0.4583, 0.02)),
)
METHODS = Ablation(
    recipe="mqa",
    text="the recipe's wiki.test.txt",
    rows=tuple(
        Row(method=method, regressed=regressed, cost=LADDER.rungs[1].cost)
        for method in ("closed form, even slots", "mean of aligned heads")
        for regressed in (True, False)
    ),
)
ENGINE = EngineStatus(
    pid=1234567,
    name="bundles/compact",
    written=0.0,
    metrics=Metrics(
        CacheMetrics(queried_tokens=100_000, hit_tokens=87_654),
        {"global": PoolUsage(4_096, 1_000, 20), "window1024_sink4": PoolUsage(65_536, 12_345, 20_000)},
        kv_cache_bytes=1 << 34,
        evicted_pages=0,
    ),
)
TURN = Usage(
    prompt_tokens=12_000,
    reused_tokens=11_000,
    prefilled_tokens=1_000,
    completion_tokens=200,
    recomputed_tokens=0,
    queued_seconds=0.0,
    time_to_first_token=0.0612,
    tokens_per_second=97.34,
)


def search_result() -> Found:
    space = make_space(3, layers=30)
    globals_ = frozenset({3, 17, 29})
    solution = choose_banks(space, globals_, ())
    cost = Cost(kl=0.0583, nll=1.25)
    return Found(
        plan=space.plan(solution),
        solution=solution,
        cost=cost,
        plans=(Candidate(solution, cost), Candidate(solution, Cost(kl=0.06))),
        horizons=Horizons(globals_, 2.5),
        space=space,
    )


def server_snapshot() -> dict[str, Any]:
    """A server's own, of the widest figures."""
    llm = PuppetLLM()
    _, state = make_server(llm)
    match = PrefixMatch(11_000, 9_000, gone=("window1024_sink4",))
    state.metrics.recent.add(1234567, "a tenant", "deadline", 9.9, replace(TURN, match=match))
    llm.see(requests=(RequestView(1234567, "research", "decode", 120_000, 9_000, 1_234, 0.0, None, match),))
    return ServerView(state, ANYONE).values()


def tables_of_a_bundle() -> dict[str, tuple[Table, ...]]:
    """By the function that makes them; words and figures as large as they come."""
    linear = LinearPrecision(precision="int8_a16", relative_error=0.123, deployed_error=0.004)
    log = "\n".join(
        json.dumps({"step": step, "loss": 1.23456}) for step in ("layerwise", "end_to_end", "int8")
    )
    return {
        "perplexity_table": (evaluation.perplexity_table(EVALUATION.perplexity, EVALUATION.text),),
        "divergence_table": (evaluation.divergence_table(EVALUATION.divergences),),
        "retrieval_table": (evaluation.retrieval_table(EVALUATION.retrieval, EVALUATION.window),),
        "retrieval_share_table": (evaluation.retrieval_share_table(EVALUATION),),
        "last_words_table": (evaluation.last_words_table(EVALUATION.last_words),),
        "slips_tables": evaluation.slips_tables(EVALUATION.slips),
        "cost_table": (evaluation.cost_table(EVALUATION.cpu_seconds),),
        "evaluation_tables": evaluation.evaluation_tables(EVALUATION),
        "quality_table": (quality_table(MEASUREMENTS),),
        "full_quality_table": (full_quality_table(MEASUREMENTS),),
        "verdict_table": (
            verdict_table(
                [
                    Verdict(
                        threshold="kl",
                        meaning="mean KL to the original",
                        measured=0.012,
                        limit=1,
                        passed=True,
                    ),
                    Verdict(
                        threshold="top1", meaning="top-1 agreement", measured=0.5, limit=0.9, passed=False
                    ),
                ]
            ),
        ),
        "fold_error_table": (fold_error_table({3: 0.123, 12: 0.5}),),
        "raised_linear_table": (
            raised_linear_table(Quantization(linears={"model.layers.29.mlp.gate_up_proj": linear})),
        ),
        "loss_table": (loss_table(log),),
        "layer_table": tuple(layer_table(plan, SHAPE) for plan in PLANS),
        "kv_bytes_table": tuple(kv_bytes_table(kv_bytes(plan, SHAPE)) for plan in PLANS),
        "turns_table": (turns_table([TURN]),),
    }


def tables_of_studies_and_machines() -> dict[str, tuple[Table, ...]]:
    """The same, of all others."""
    found = search_result()
    return {
        "gpu_table": (gpu_table([Gpu(0, "NVIDIA H100 80GB HBM3", 87, 3 << 30, 80 << 30, 61, None)]),),
        "machine_table": (machine_table(),),
        "engine_table": (engine_table([ENGINE]),),
        "server_tables": server_tables("http://127.0.0.1:8000", server_snapshot()),
        "bench_table": (bench_table(result_of_two()),),
        "serve_table": (serve_table(result_of_two_scenarios()),),
        "trace_table": (trace_table(TRACE_RESULT),),
        "tuning_table": (tuning_table(TUNED),),
        "broken_ways_table": (broken_ways_table(TUNED),),
        "findings_table": (
            findings_table(
                [
                    Finding("CPU", "ok", "AMD EPYC 7763 64-Core Processor, 2 cores, AVX2, AVX512-VNNI, AMX"),
                    Finding(
                        "target tensorrt-rtx", "problem", "no GPU: nothing can run", "apt-get install driver"
                    ),
                ]
            ),
        ),
        "frontier_tables": frontier_tables(LADDER),
        "whole_frontier_table": (whole_frontier_table(LADDER),),
        "ablation_tables": ablation_tables(METHODS),
        "whole_ablation_table": (whole_ablation_table(METHODS),),
        "search_tables": search.search_tables(found),
        "cost_table": (search.cost_table(found),),
        "window_table": (search.window_table(found),),
        "distant_table": (search.distant_table(found.space),),
        "plans_table": (search.plans_table(found),),
    }


EXAMPLES = tables_of_a_bundle() | tables_of_studies_and_machines()


def render(table: Table, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(draw_table(table))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def squeeze(text: str) -> str:
    return "".join(text.split())


def test_every_function_that_makes_a_table_has_its_example() -> None:
    made = {
        node.name
        for path in (ROOT / "pipeline").rglob("*.py")
        for node in ast.parse(path.read_bytes()).body
        if isinstance(node, ast.FunctionDef) and node.returns and not node.name.startswith("_")
        if ast.unparse(node.returns) == "Table" or ast.unparse(node.returns).startswith("tuple[Table")
    }
    assert made == EXAMPLES.keys()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", EXAMPLES)
def test_nothing_is_cut_and_no_line_is_too_wide(name: str, width: int) -> None:
    for table in EXAMPLES[name]:
        lines = render(table, width)
        assert max(map(cell_len, lines)) <= width
        assert not any("\u2026" in line for line in lines)
        whole = squeeze(" ".join(lines))
        cells = [
            (cell.text, table.prose and cell is row[-1])
            for row in table.rows
            for cell, column in zip(row, table.columns, strict=True)
            if cell.text and column != table.drawing
        ]
        for (text, may_wrap), count in Counter(cells).items():
            if cell_len(text) <= width - 4 and not may_wrap:  # room in a line, also below a column's name
                assert sum(line.count(text) for line in lines) >= count, text
            else:
                assert whole.count(squeeze(text)) >= count, text
        for text in (table.title, table.note):
            assert squeeze(text) in whole
        for column in table.columns:
            assert all(word in whole for word in column.split() if column != table.drawing)

"""`kvfold bench`: the engine beside its peers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich import get_console

from kvfold.pipeline.bench.bench_settings import BenchSettings
from kvfold.pipeline.bench.serving.serve_settings import ServeSettings
from kvfold.pipeline.bench.trace.trace_settings import TraceSettings
from kvfold.pipeline.commands.options.bench_options import bench_options
from kvfold.pipeline.commands.options.recipe_arguments import bundle_path, output_option, recipe_argument
from kvfold.pipeline.commands.options.serve_bench_options import serve_bench_options
from kvfold.pipeline.commands.options.trace_bench_options import trace_bench_options
from kvfold.pipeline.workspace.fetch import MODEL_CACHE
from kvfold.plugins.contract.errors import BundleError, RecipeError, ValidationError

if TYPE_CHECKING:
    from kvfold.pipeline.bench.bench_results import BenchResult
    from kvfold.pipeline.bench.serving.serve_results import ServeResult
    from kvfold.pipeline.show.table import Table
    from kvfold.pipeline.workspace.workspace import Workspace


@click.command("bench")
@recipe_argument
@output_option
@trace_bench_options
@bench_options
@serve_bench_options
@click.option(
    "--work",
    type=click.Path(path_type=Path, file_okay=False),
    default=MODEL_CACHE / "bench",
    show_default=True,
    help="Where the peers' converted models are kept.",
)
def command(
    recipe: str,
    output: Path | None,
    settings: BenchSettings,
    serving: ServeSettings | None,
    replay: TraceSettings | None,
    work: Path,
) -> None:
    """Measure RECIPE's engine beside its peers: llama.cpp, onnxruntime-genai, OpenVINO GenAI, transformers.

    All start from the same weights, kvfold's folded by the plan; one process runs at a time. --beside adds
    another recipe's engine, --peers all the peers in 4 bits; --target cuda takes those of a GPU, vLLM among
    them. Measured are
    prefill, decoding, eight sequences at once, the second turn of a conversation, peak memory and load
    time. Raw samples go to report/bench.json in the bundle, the table to report/bench.md.

    With --serve the bench starts `kvfold serve` and puts it under load: what HTTP costs, what ten times too
    many requests do, whether anything is lost when clients leave. Each figure stands beside its demand, and a
    missed one is exit code 1. Results go to report/serve.json and serve.md.

    With --trace FILE alone nothing is computed. A trace of requests goes through the scheduler and its
    memory, once for each of --budgets: how many prompt tokens are found again, beside an ideal LRU of the
    same bytes and beside the unfolded model's bf16 cache. RECIPE may be a bundle's folder, and need not be
    built.

    \b
    Examples:
      kvfold bench --peers none --quick
      kvfold bench --peer-python .venv-peers/bin/python
      kvfold bench compact --beside identity --peers all
      kvfold bench --target cuda --peers transformers_cuda
      kvfold bench --serve --scenario cpu
      kvfold bench --serve --scenario peers --llama-server ./llama-server
      kvfold bench compact --trace FILE --requests 3000 --budgets 64MiB,256MiB,1GiB
    """
    if replay is not None:
        _replay_trace(recipe, replay)
    elif serving is not None:
        _bench_servers(recipe, output, settings, serving, work)
    else:
        _bench_engines(recipe, output, settings, work)


def _bench_engines(recipe: str, output: Path | None, settings: BenchSettings, work: Path) -> None:
    from kvfold.pipeline.bench.bench import run_bench
    from kvfold.pipeline.bench.bench_table import bench_table
    from kvfold.pipeline.bench.entrants import OwnBundle
    from kvfold.pipeline.bench.prepared_models import PreparedModels
    from kvfold.pipeline.bring_up_to_date import bring_up_to_date
    from kvfold.pipeline.workspace.read_checkpoint import read_checkpoint
    from kvfold.pipeline.workspace.workspace import Workspace

    root = bundle_path(recipe, output)
    loaded = bring_up_to_date(recipe, root, "build", target=settings.target)
    workspace = Workspace(loaded, root)
    checkpoint = read_checkpoint(workspace)
    models = PreparedModels(work, checkpoint)
    console = get_console()
    workspaces = [workspace]
    for name in settings.beside:
        other = bundle_path(name, None)
        if other.name in [each.root.name for each in workspaces]:
            raise RecipeError(f"--beside {name}: another bundle is called {other.name}; rename the recipe")
        workspaces.append(Workspace(bring_up_to_date(name, other, "build", target=settings.target), other))
        _require_one_checkpoint(name, workspaces[-1], recipe, workspace)
    bundles = [OwnBundle(each.root, each.plan, _weights(each, settings.target)) for each in workspaces]
    result = run_bench(bundles, models, checkpoint.config, settings, console)
    report = root / "report"
    _write(result, bench_table(result), report / "bench.json", report / "bench.md")


def _require_one_checkpoint(name: str, other: Workspace, recipe: str, workspace: Workspace) -> None:
    if other.fingerprint != workspace.fingerprint:
        raise RecipeError(f"--beside {name} is of another checkpoint than {recipe}; compare one model's")


def _weights(workspace: Workspace, target: str) -> str:
    """What an engine's linears are: int8 ones are none of ONNX Runtime's on CUDA."""
    from kvfold.pipeline.build.cuda_kernels import activations_of

    weights = workspace.quantization.weights
    return activations_of(workspace.recipe) if target == "cuda" and weights == "int8" else weights


def _replay_trace(recipe: str, replay: TraceSettings) -> None:
    from kvfold.pipeline.bench.trace.run_trace_bench import run_trace_bench
    from kvfold.pipeline.bench.trace.trace_table import trace_table
    from kvfold.pipeline.commands.options.read_plan import read_plan
    from kvfold.pipeline.show.terminal import draw_table

    console = get_console()
    result = run_trace_bench(*read_plan(recipe), replay, console)
    console.print(draw_table(trace_table(result)))
    if replay.json is None:
        return
    try:
        result.save(replay.json)
    except OSError as error:
        raise _unwritable(error) from error
    console.print(f"Wrote {replay.json}", soft_wrap=True)


def _bench_servers(
    recipe: str, output: Path | None, settings: BenchSettings, serving: ServeSettings, work: Path
) -> None:
    from kvfold.pipeline.bench.prepared_models import PreparedModels
    from kvfold.pipeline.bench.serving.run_serve_bench import prepare_peer, run_serve_bench
    from kvfold.pipeline.bench.serving.scenarios.scenario import Bench
    from kvfold.pipeline.bench.serving.serve_table import serve_table
    from kvfold.pipeline.bring_up_to_date import bring_up_to_date
    from kvfold.pipeline.machine.extras import require_extra
    from kvfold.pipeline.workspace.read_checkpoint import read_checkpoint
    from kvfold.pipeline.workspace.workspace import Workspace

    require_extra("serve-bench")
    root = bundle_path(recipe, output)
    workspace = Workspace(bring_up_to_date(recipe, root, "build", target="cpu"), root)
    others = {name: bundle_path(name, None) for name in serving.beside}
    for name, other in others.items():
        beside = Workspace(bring_up_to_date(name, other, "build", target="cpu"), other)
        _require_one_checkpoint(name, beside, recipe, workspace)
    checkpoint, console, report = read_checkpoint(workspace), get_console(), root / "report"
    peer = serving.llama_server
    logs = report / "serve-logs"
    logs.mkdir(parents=True, exist_ok=True)
    bench = Bench(
        bundle=root,
        vocab_size=checkpoint.config.vocab_size,
        logs=logs,
        beside=tuple(others.values()),
        peer=None if peer is None else prepare_peer(peer, PreparedModels(work, checkpoint), console),
        urls=serving.urls,
        rounds=settings.rounds,
        threads=settings.threads,
        soak_seconds=60 * serving.minutes,
        trace=serving.trace,
    )
    result = run_serve_bench(bench, serving.scenarios, console)
    _write(result, serve_table(result), serving.json or report / "serve.json", report / "serve.md")
    if result.missed:
        missed = "; ".join(f"{figure.title}: {figure.value:.3g} {figure.unit}" for figure in result.missed)
        raise ValidationError(f"{len(result.missed)} figures miss their demand: {missed}")


def _write(result: BenchResult | ServeResult, table: Table, raw: Path, page: Path) -> None:
    """Show the table, and write it and what it was made from."""
    from kvfold.pipeline.show.markdown import write_table
    from kvfold.pipeline.show.terminal import draw_table

    console = get_console()
    console.print(draw_table(table))
    try:
        page.parent.mkdir(exist_ok=True)
        result.save(raw)
        page.write_text(write_table(table), encoding="utf-8")
    except OSError as error:
        raise _unwritable(error) from error
    console.print(f"Wrote {raw} and {page.name}", soft_wrap=True)


def _unwritable(error: OSError) -> BundleError:
    return BundleError(f"{error.filename} cannot be written ({error.strerror}); check its permissions")

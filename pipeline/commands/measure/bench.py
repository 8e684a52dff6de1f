"""`kvfold bench`: the engine beside its peers."""

from __future__ import annotations

from pathlib import Path

import click
from rich import get_console

from kvfold.pipeline.bench.bench_settings import BenchSettings
from kvfold.pipeline.commands.options.bench_options import bench_options
from kvfold.pipeline.commands.options.recipe_arguments import bundle_path, output_option, recipe_argument
from kvfold.pipeline.workspace.fetch import MODEL_CACHE
from kvfold.plugins.contract.errors import BundleError


@click.command("bench")
@recipe_argument
@output_option
@bench_options
@click.option(
    "--work",
    type=click.Path(path_type=Path, file_okay=False),
    default=MODEL_CACHE / "bench",
    show_default=True,
    help="Where the peers' converted models are kept.",
)
def command(recipe: str, output: Path | None, settings: BenchSettings, work: Path) -> None:
    """Measure RECIPE's engine beside its peers: llama.cpp, onnxruntime-genai, OpenVINO GenAI, transformers.

    All start from the same weights, kvfold's folded by the plan; one process runs at a time. Measured are
    prefill, decoding, eight sequences at once, the second turn of a conversation, peak memory and load
    time. Raw samples go to report/bench.json in the bundle, the table to report/bench.md.

    \b
    Examples:
      kvfold bench --peers none --quick
      kvfold bench --peer-python .venv-peers/bin/python
    """
    from kvfold.pipeline.bench.bench import run_bench
    from kvfold.pipeline.bench.bench_table import bench_table
    from kvfold.pipeline.bench.prepared_models import PreparedModels
    from kvfold.pipeline.bring_up_to_date import bring_up_to_date
    from kvfold.pipeline.show.markdown import write_table
    from kvfold.pipeline.show.terminal import draw_table
    from kvfold.pipeline.workspace.read_checkpoint import read_checkpoint
    from kvfold.pipeline.workspace.workspace import Workspace

    root = bundle_path(recipe, output)
    loaded = bring_up_to_date(recipe, root, "build", target="cpu")
    workspace = Workspace(loaded, root)
    checkpoint = read_checkpoint(workspace)
    models = PreparedModels(work, checkpoint)
    console = get_console()
    result = run_bench(root, workspace.plan, models, checkpoint.config.vocab_size, settings, console)
    table = bench_table(result)
    console.print(draw_table(table))
    report = root / "report"
    try:
        report.mkdir(exist_ok=True)
        result.save(report / "bench.json")
        (report / "bench.md").write_text(write_table(table), encoding="utf-8")
    except OSError as error:
        raise BundleError(f"{report} cannot be written ({error.strerror}); check its permissions") from error
    console.print(f"Wrote {report / 'bench.json'} and bench.md", soft_wrap=True)

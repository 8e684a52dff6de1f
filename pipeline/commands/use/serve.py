"""`kvfold serve`: a bundle over HTTP, as OpenAI's API."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from socket import gethostname
from typing import TYPE_CHECKING, Any

import click

from kvfold.pipeline.commands.options.built_bundle import built_bundle
from kvfold.pipeline.commands.options.recipe_arguments import output_option, recipe_argument, target_options
from kvfold.pipeline.commands.options.server_options import server_options

if TYPE_CHECKING:
    from kvfold.runtime.server.start.run_server import Loaded
    from kvfold.runtime.server.start.server_settings import ServerSettings


@click.command("serve")
@recipe_argument
@output_option
@target_options
@click.option("--served-model-name", help="What clients call the model.  [default: the bundle's folder]")
@server_options
def command(
    recipe: str,
    output: Path | None,
    target: str | None,
    architectures: tuple[int, ...],
    served_model_name: str | None,
    settings: ServerSettings,
    engine: dict[str, Any],
) -> None:
    """Serve RECIPE's model over HTTP; RECIPE may also be the folder of a built bundle.

    Stages that are not up to date run first. The server listens before the model is read, and answers 503
    until then. Ctrl-C or SIGTERM lets running replies finish; a second one does not. SIGHUP reads the
    keys again.

    \b
    Examples:
      kvfold serve                              the demo model, on http://127.0.0.1:8000
      kvfold serve bundles/compact --port 9000  a built bundle; needs no torch
      kvfold serve --host 0.0.0.0 --keys keys.json  for other machines
    """
    from kvfold.pipeline.machine.extras import require_extra

    require_extra("serve")
    root, target = built_bundle(recipe, output, target, architectures)
    _serve(root, target, served_model_name or root.resolve().name, settings, engine)


def _serve(
    root: Path, target: str, model_name: str, settings: ServerSettings, engine: dict[str, Any]
) -> None:
    from kvfold.runtime.server.observe.kv_events import KvEvents
    from kvfold.runtime.server.start.kept_pages import kept_pages
    from kvfold.runtime.server.start.load_served import load_served
    from kvfold.runtime.server.start.make_application import make_application
    from kvfold.runtime.server.start.run_server import run_server
    from kvfold.runtime.status import published

    app, state = make_application(model_name, settings)
    engine = {**engine, **kept_pages(settings)}
    with ExitStack() as stack:

        def load() -> Loaded:
            llm, compiler = load_served(root, target, engine)
            stack.enter_context(published(llm.llm, str(root)))
            if settings.kv_events is not None:
                topic = settings.kv_events_topic or f"kv@{gethostname()}@{model_name}"
                events = KvEvents(settings.kv_events, topic, llm.page_size)
                stack.callback(events.close)
                llm.watch_tree(events)
            return llm, compiler, settings.limits(llm.llm.config.max_num_seqs)

        run_server(app, state, settings, load)

"""kvfold's server over an engine that computes nothing: BUNDLE PORT REQUESTS_AT_ONCE PAUSE."""

from __future__ import annotations

import sys
from pathlib import Path

from kvfold.pipeline.bench.serving.servers.zero_cost import load_zero_cost
from kvfold.runtime.bundle import TOKENIZER, open_bundle
from kvfold.runtime.llm.async_llm import AsyncLLM
from kvfold.runtime.runtime_config import RuntimeConfig
from kvfold.runtime.server.start.load_compiler import load_compiler
from kvfold.runtime.server.start.make_application import make_application
from kvfold.runtime.server.start.run_server import Loaded, run_server
from kvfold.runtime.server.start.server_settings import ServerSettings


def serve(bundle: Path, port: int, at_once: int, pause: float) -> None:
    """Until SIGTERM; the engine pauses so many seconds a step."""
    settings = ServerSettings(port=port)
    app, state = make_application(bundle.name, settings)

    def load() -> Loaded:
        llm = AsyncLLM(load_zero_cost(bundle, RuntimeConfig(max_num_seqs=at_once), pause))
        text = open_bundle(bundle).file(TOKENIZER).read_text(encoding="utf-8")
        compiler = load_compiler(text, llm.vocab_size, llm.tokenizer.eos_token_ids)
        return llm, compiler, settings.limits(at_once)

    run_server(app, state, settings, load)


if __name__ == "__main__":
    of_bundle, of_port, of_requests, of_pause = sys.argv[1:]
    serve(Path(of_bundle), int(of_port), int(of_requests), float(of_pause))

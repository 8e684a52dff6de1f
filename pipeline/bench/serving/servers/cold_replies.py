"""What a bundle replies when nothing is cached: a fresh runtime for each reply, over one engine.

Run as a module: the bundle is the first argument, a file of asks the second, one for the replies the third.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvfold.pipeline.bench.serving.client.asks import Body
from kvfold.plugins.contract.errors import TargetError

# Fields of OpenAI's API that are SamplingParams' too.
SAMPLING = ("max_tokens", "temperature", "seed", "ignore_eos")
SHOWN = 2000  # characters of what a failed process printed


def cold_replies(bundle: Path, asks: Sequence[Body]) -> list[str]:
    """The texts that chat completions of these bodies would give, in a fresh process.

    Raises:
        TargetError: it failed; the message holds the end of what it printed.
    """
    with tempfile.TemporaryDirectory() as folder:
        asked, replied = Path(folder) / "asks.json", Path(folder) / "replies.json"
        asked.write_text(json.dumps(list(asks)))
        command = [sys.executable, "-m", __name__, str(bundle), str(asked), str(replied)]
        run = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if run.returncode:
            raise TargetError(f"cold replies of {bundle} failed:\n{(run.stdout + run.stderr)[-SHOWN:]}")
        texts: list[str] = json.loads(replied.read_text())
        return texts


def reply_to_all(bundle: Path, asks: Sequence[dict[str, Any]]) -> list[str]:
    """The same in this process."""
    from kvfold.runtime.bundle import TOKENIZER, TOKENIZER_CONFIG, open_bundle
    from kvfold.runtime.engine.engine_files import open_engine
    from kvfold.runtime.engine.load_engine import load_engine
    from kvfold.runtime.llm.llm import DEFAULT_TARGET, LLM
    from kvfold.runtime.memory.budget import kv_cache_bytes
    from kvfold.runtime.runtime_config import RuntimeConfig
    from kvfold.runtime.sampling.params import SamplingParams
    from kvfold.runtime.text.tokenizer import BundleTokenizer

    opened = open_bundle(bundle)
    files = open_engine(opened, DEFAULT_TARGET)
    config = RuntimeConfig(max_num_seqs=1)
    budget = kv_cache_bytes(files.plan, files.slab_pages, config, files.config.max_context_length)
    engine = load_engine(files, budget, config.max_num_batched_tokens, config.max_num_seqs)
    tokenizer = BundleTokenizer.load(opened.file(TOKENIZER), opened.file(TOKENIZER_CONFIG))
    texts = []
    for ask in asks:
        params = SamplingParams(**{name: ask[name] for name in SAMPLING if name in ask})
        texts.append(LLM(engine, tokenizer, config).chat(ask["messages"], params).text)
    return texts


if __name__ == "__main__":
    of_bundle, asks_file, replies_file = map(Path, sys.argv[1:])
    replies_file.write_text(json.dumps(reply_to_all(of_bundle, json.loads(asks_file.read_text()))))

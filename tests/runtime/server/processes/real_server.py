"""All of `kvfold serve` over a synthetic engine, from sockets to pages: only the model's numbers are a hash.

`python -m tests.runtime.server.processes.real_server FOLDER PORT [KEYS]`. A token is a byte. After the drain
it counts its pages, and ends with 0 where each has exactly its holders. FOLDER gets the tokenizer
and `state`, where sessions, stored responses and their pages outlive the server.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from kvfold.plugins.contract.tokenizer_config import TokenizerConfig
from kvfold.runtime.llm.async_llm import AsyncLLM
from kvfold.runtime.llm.llm import LLM
from kvfold.runtime.memory.open_tier import stack_tiers
from kvfold.runtime.memory.tiers.kv_tier import KvTier
from kvfold.runtime.memory.tiers.layout import TierLayout
from kvfold.runtime.runtime_config import RuntimeConfig
from kvfold.runtime.server.start.kept_pages import kept_pages
from kvfold.runtime.server.start.make_application import make_application
from kvfold.runtime.server.start.run_server import Loaded, run_server
from kvfold.runtime.server.start.server_settings import ServerSettings
from kvfold.runtime.structured.grammar_compiler import GrammarCompiler
from kvfold.runtime.text.tokenizer import BundleTokenizer
from tests.runtime.harness import PLANS, check
from tests.runtime.synthetic_engine import SyntheticEngine

MODEL = "tiny"
CONTROL = ("<|im_start|>", "<|im_end|>")
VOCAB = 256 + len(CONTROL)
CONTEXT, PAGES = 2048, 512
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tokenizer(folder: Path) -> tuple[Path, Path]:
    """A tokenizer of bytes with ChatML's control tokens, as a bundle has it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({text: at for at, text in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in CONTROL])
    config = TokenizerConfig(eos_token_ids=(VOCAB - 1,), chat_template=TEMPLATE)
    paths = folder / "tokenizer.json", folder / "tokenizer_config.json"
    for path, text in zip(paths, (tokenizer.to_str(), config.model_dump_json()), strict=True):
        path.write_text(text)
    return paths


def open_tier(config: RuntimeConfig) -> KvTier | None:
    """What `LLM.load` does for a bundle's engine; of other servers' files it knows at once."""
    layout = TierLayout.of(PLANS["hybrid"])
    tier = stack_tiers(layout, layout.root_key(MODEL, "hash"), config)
    if tier is not None:
        tier.refresh()
        tier.flush(10)
    return tier


def main(folder: Path, port: int, keys: Path | None) -> None:
    """Serve until a signal; raises AssertionError where a page was lost."""
    paths = write_tokenizer(folder)
    engine = SyntheticEngine(PLANS["hybrid"], PAGES, VOCAB, CONTEXT)
    settings = ServerSettings(port=port, keys=keys, drain_seconds=5, state_dir=folder / "state")
    app, state = make_application(MODEL, settings)
    config = RuntimeConfig(max_num_batched_tokens=64, **kept_pages(settings))
    llm = LLM(engine, BundleTokenizer.load(*paths), config, open_tier(config))

    def load() -> Loaded:
        compiler = GrammarCompiler(paths[0].read_text(), VOCAB, [VOCAB - 1])
        return AsyncLLM(llm), compiler, settings.limits(llm.config.max_num_seqs)

    run_server(app, state, settings, load)
    check(llm)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]) if len(sys.argv) > 3 else None)

"""Load what a server answers with: a bundle's engine, and the compiler of its grammars."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvfold.runtime.bundle import TOKENIZER, open_bundle
from kvfold.runtime.engine.engine_files import open_engine
from kvfold.runtime.llm.async_llm import AsyncLLM
from kvfold.runtime.server.start.load_compiler import load_compiler
from kvfold.runtime.server.start.server_settings import serving_config

if TYPE_CHECKING:
    from kvfold.runtime.structured.grammar_compiler import GrammarCompiler


def load_served(
    root: Path, target: str, engine: Mapping[str, Any]
) -> tuple[AsyncLLM, GrammarCompiler | None]:
    """Read a bundle; its compiler is None where its tokenizer cannot be held to grammars.

    Args:
        root: the bundle's folder.
        target: which of its engines.
        engine: fields of RuntimeConfig that are not the server's defaults.

    Raises:
        BundleError: the bundle is not there, or is damaged.
        KvfoldError: as `LLM.load`.
    """
    bundle = open_bundle(root)
    config = serving_config(open_engine(bundle, target).config, engine)
    llm = AsyncLLM.load(root, config, target)
    text = bundle.file(TOKENIZER).read_text(encoding="utf-8")
    return llm, load_compiler(text, llm.vocab_size, llm.tokenizer.eos_token_ids)

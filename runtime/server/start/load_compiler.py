"""The compiler of a model's grammars; a model that can have none is served all the same."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from kvfold.plugins.contract.errors import RequestError
from kvfold.runtime.structured.grammar_compiler import GrammarCompiler

LOG = logging.getLogger("kvfold.server")


def load_compiler(
    tokenizer_json: str, vocab_size: int, eos_token_ids: Sequence[int]
) -> GrammarCompiler | None:
    """Read a tokenizer; None, and a line in the log, where it is one that cannot be held to grammars."""
    try:
        return GrammarCompiler(tokenizer_json, vocab_size, eos_token_ids)
    except RequestError as error:
        LOG.warning("no structured output: %s", error)
        return None

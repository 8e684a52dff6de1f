"""A checkpoint's tokenizer and chat template in the words of a GGUF file."""

from __future__ import annotations

import json
from typing import Any

from tokenizers.pre_tokenizers import PreTokenizer

from kvfold.export.checkpoint.checkpoint_tokenizer import CheckpointTokenizer
from kvfold.export.checkpoint.gguf_tokenizer import SPECIAL_TOKENS
from kvfold.export.checkpoint.gguf_vocabulary.pre_tokenizers import PRE_TOKENIZERS
from kvfold.plugins.contract.errors import UnsupportedModelError

# Pre-tokenizers that llama.cpp knows differ in how they split this.
PROBE = (
    "I'll DON'T x2y 1234567 a.b,,$c\n\n  d\t\u00e9t\u00e9 \u6f22\u5b57!?\r\n end aBc'S ./x > ` \u0928\u094d  "
)


def add_vocabulary(writer: Any, tokenizer: CheckpointTokenizer, vocab_size: int) -> None:
    """Add all that llama.cpp needs to read and write text to a GGUFWriter.

    Raises:
        UnsupportedModelError: the vocabulary is not byte-level BPE, or splits text as no pre-tokenizer of
            llama.cpp does.
    """
    import gguf

    content = json.loads(tokenizer.json)
    model = content["model"]
    if model["type"] != "BPE":
        raise UnsupportedModelError(
            f"a tokenizer of type {model['type']}: the GGUF writer knows byte-level BPE only; "
            "leave llama-server out"
        )
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer_name(tokenizer))
    tokens, types = [f"[PAD{index}]" for index in range(vocab_size)], [gguf.TokenType.UNUSED] * vocab_size
    for token, index in model["vocab"].items():
        tokens[index], types[index] = token, gguf.TokenType.NORMAL
    for added in content["added_tokens"]:
        kind = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
        tokens[added["id"]], types[added["id"]] = added["content"], kind
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in model["merges"]])
    config = tokenizer.config
    for name, key in SPECIAL_TOKENS.items():
        index = tokenizer.backend.token_to_id(config.special_tokens.get(name, ""))
        if index is not None:
            writer.add_uint32(key, index)
    writer.add_add_bos_token(config.add_bos_token)
    if config.chat_template is not None:
        writer.add_chat_template(config.chat_template)


def pre_tokenizer_name(tokenizer: CheckpointTokenizer) -> str:
    """llama.cpp's name for how a tokenizer splits text before it merges; by what both make of a text.

    Raises:
        UnsupportedModelError: none splits like it.
    """
    own = tokenizer.backend.pre_tokenizer
    ignore_merges = bool(json.loads(tokenizer.json)["model"].get("ignore_merges"))
    pieces = None if own is None else _split(own)
    for name, known in PRE_TOKENIZERS.items():
        if known.ignore_merges == ignore_merges and _split(known.splitter()) == pieces:
            return name
    raise UnsupportedModelError(
        "llama.cpp has no pre-tokenizer that splits text as this model's does; leave llama-server out"
    )


def _split(pre_tokenizer: PreTokenizer) -> list[str]:
    return [piece for piece, _ in pre_tokenizer.pre_tokenize_str(PROBE)]

"""Vocabularies of types llama and gemma4: merges of whole texts, spaces as ▁; what is unknown is bytes.

llama.cpp joins, of all neighbours that together are a token, those whose token has the highest score, and of
equal ones the leftmost. Here the pairs are a list of merges in that order. Of tokens with equal scores, runs
of spaces in practice, the longer comes first: a run then grows from the left, as it does there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf import TokenType
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from kvfold.export.checkpoint.gguf_vocabulary.build_byte_level import merging_model
from kvfold.export.checkpoint.gguf_vocabulary.tokens import GgufTokens, read_tokens

SPACE = "▁"


def build_sentencepiece(path: Path, metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a file of type llama; raises as `tokenizer_from_gguf` does."""
    tokens = read_tokens(path, metadata, needed=("scores",))
    model = models.BPE(
        vocab=tokens.ids,
        merges=merges_by_score(tokens),
        unk_token=tokens.text_of(TokenType.UNKNOWN),
        byte_fallback=True,
    )
    return _tokenizer(model, tokens, prefix=bool(metadata.get("tokenizer.ggml.add_space_prefix", True)))


def build_gemma4(path: Path, metadata: Mapping[str, Any]) -> Tokenizer:
    """The same of type gemma4, which has a list of merges."""
    tokens = read_tokens(path, metadata, needed=("merges",))
    model = merging_model(
        path, metadata, tokens, unk_token=tokens.text_of(TokenType.UNKNOWN), byte_fallback=True
    )
    tokenizer = _tokenizer(model, tokens, prefix=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n+"), "isolated")
    return tokenizer


def _tokenizer(model: models.BPE, tokens: GgufTokens, *, prefix: bool) -> Tokenizer:
    """With `prefix`, each text between added tokens begins with a space, which decoding leaves out."""
    tokenizer = Tokenizer(model)
    escape = normalizers.Replace(" ", SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), escape]) if prefix else escape
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    tokens.add_to(tokenizer)
    return tokenizer


def merges_by_score(tokens: GgufTokens) -> list[tuple[str, str]]:
    """All pairs of tokens that together are a token, in the order in which they are joined."""
    joined = {
        text: (-score, -len(text), index)
        for index, (text, kind, score) in enumerate(
            zip(tokens.texts, tokens.kinds, tokens.scores, strict=False)
        )
        if kind not in (TokenType.CONTROL, TokenType.UNKNOWN)
    }
    return [
        (text[:at], text[at:])
        for text in sorted(joined, key=joined.__getitem__)
        for at in range(1, len(text))
        if text[:at] in joined and text[at:] in joined
    ]

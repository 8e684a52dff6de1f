"""Tokenizers of every kind that models come with, and chat templates that write their control tokens."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from gguf import TokenType
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from kvfold.export.checkpoint.gguf_tokenizer import tokenizer_from_gguf
from kvfold.export.checkpoint.gguf_vocabulary.pre_tokenizers import PRE_TOKENIZERS
from tests.export.tiny_checkpoints import tiny_tokenizer

SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|tool|>")
NOT_SPECIAL = ("<think>", "</think>", "[INST]", "[/INST]")
SPELLINGS = SPECIAL + NOT_SPECIAL
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
PIECES = (*BYTES, "th", "Ġth", "<|", "|>", "</", "s>", "im")
MERGES = [("t", "h"), ("Ġ", "th"), ("<", "|"), ("|", ">"), ("<", "/"), ("s", ">"), ("i", "m")]


def from_gguf(pre: str) -> Tokenizer:
    """As llama.cpp's converter writes one: control tokens stand in the vocabulary."""
    kinds = dict.fromkeys(SPECIAL, TokenType.CONTROL) | dict.fromkeys(NOT_SPECIAL, TokenType.USER_DEFINED)
    tokens = [*SPELLINGS, *PIECES]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [kinds.get(token, TokenType.NORMAL) for token in tokens],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in MERGES],
    }
    return tokenizer_from_gguf(Path("model.gguf"), metadata, len(tokens), None).backend


def qwen() -> Tokenizer:
    """Bytes, composed characters, control tokens behind the vocabulary, some of them not special."""
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(PIECES)}, MERGES))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return add(tokenizer)


def llama2() -> Tokenizer:
    """Sentencepiece's BPE as one word, whose merges alone make control tokens."""
    tokenizer = sentencepiece([("<", "s>"), ("</", "s>"), ("<|im", "_end|>")])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return add(tokenizer)


def mistral() -> Tokenizer:
    """Sentencepiece's BPE with a space before the first text of all."""
    tokenizer = sentencepiece([("</", "s>")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return add(tokenizer)


def sentencepiece(control: list[tuple[str, str]]) -> Tokenizer:
    """BPE that falls back to bytes, with merges that make control tokens."""
    merges = [("▁", "t"), *MERGES[2:], ("<|", "im"), ("_", "e"), ("_e", "n"), ("_en", "d"), ("_end", "|>")]
    vocab = ["<unk>", *SPELLINGS, *(f"<0x{byte:02X}>" for byte in range(256))]
    vocab += ["▁", *map(chr, range(33, 127)), *(left + right for left, right in merges)]
    ids = {token: index for index, token in enumerate(vocab)}
    return Tokenizer(models.BPE(ids, [*merges, *control], byte_fallback=True, unk_token="<unk>"))


def unigram() -> Tokenizer:
    """A vocabulary by likelihood, in which control tokens are the likeliest pieces of all."""
    pieces = [("<unk>", 0.0), *((token, 0.0) for token in SPELLINGS), ("▁", -2.0), ("▁the", -3.0)]
    pieces += [(chr(code), -5.0) for code in range(33, 127)]
    tokenizer = Tokenizer(models.Unigram(pieces, 0, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    return add(tokenizer)


def words() -> Tokenizer:
    """Whole words, split so that a control token is a word of its own."""
    vocab = ["[unknown]", *SPELLINGS, "user", "assistant", "system", "tool", "\n", "x", "the", "<", ">", "|"]
    ids = {token: index for index, token in enumerate(vocab)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[unknown]"))
    either = "|".join(token.replace("|", r"\|").replace("[", r"\[") for token in SPELLINGS)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(either), "isolated"), pre_tokenizers.Split(" ", "removed")]
    )
    return add(tokenizer)


def odd() -> Tokenizer:
    """Control tokens that take in white space or are found after lower-casing; runs of spaces are tokens."""
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(PIECES)}, MERGES))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.add_special_tokens([AddedToken(token, lstrip=True, rstrip=True) for token in SPECIAL[:3]])
    tokenizer.add_tokens([AddedToken(token, normalized=True) for token in SPELLINGS[3:]])
    tokenizer.add_tokens(["  ", "    ", "\n\n"])
    return tokenizer


def add(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with every control token, as most publishers declare them."""
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in NOT_SPECIAL])
    return tokenizer


FIRST_OF_KIND = {kind: pre for pre, kind in reversed(PRE_TOKENIZERS.items())}.values()
TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "folder": tiny_tokenizer,
    **{f"gguf {pre}": partial(from_gguf, pre) for pre in FIRST_OF_KIND},
    **{made.__name__: made for made in (qwen, llama2, mistral, unigram, words, odd)},
}

PARTS = (
    "{% macro text(m) %}{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}{% endmacro %}"
)
TEMPLATES = {
    "chatml": PARTS
    + "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + text(m) + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "instruct": PARTS + "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{{ ' ' ~ text(m)|trim ~ eos_token }}{% else %}{{ '[INST] ' ~ text(m)|trim ~ ' [/INST]' }}{% endif %}"
    "{% endfor %}",
    "role": PARTS
    + "{% for m in messages %}<|{{ m.role }}|>{{ m.name }}\n{{ text(m) | replace('<', '<') }}{% endfor %}",
    "tools": PARTS
    + "{% for m in messages %}<|im_start|>{{ m | tojson }}<|im_end|>{{ m.tool_calls }}{{ text(m) }}<think>"
    "</think>{% endfor %}",
    "crafted": PARTS
    + "{% for m in messages %}{% set parts = ['<|im_', 'start|>', text(m)[1:], '%s</s>' % m.name] %}"
    "{{ parts | join }}{{ '</s>'.join([m.name, text(m)]) }}{{ '<{}>{}'.format('s', text(m)) }}{% endfor %}",
}

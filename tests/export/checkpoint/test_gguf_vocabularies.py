"""Vocabularies of GGUF files, token for token as llama.cpp reads them, and back to text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gguf import TokenType
from hypothesis import given
from hypothesis import strategies as st

from kvfold.export.checkpoint.checkpoint_tokenizer import CheckpointTokenizer
from kvfold.export.checkpoint.gguf_tokenizer import tokenizer_from_gguf
from kvfold.export.checkpoint.gguf_vocabulary.pre_tokenizers import PRE_TOKENIZERS
from kvfold.plugins.contract.errors import CheckpointError, UnsupportedModelError
from kvfold.plugins.contract.template_text import by_template
from kvfold.runtime.text.detokenize import Detokenizer, decode_after
from kvfold.runtime.text.tokenizer import BundleTokenizer

# Written once with llama.cpp; `made_by` in the file says how.
GOLDEN = json.loads((Path(__file__).parent / "data" / "llama_cpp_vocabularies.json").read_text())
INPUTS = GOLDEN["inputs"]


def read(model: str, kind: str, **keys: Any) -> CheckpointTokenizer:
    """The tokenizer of a file with one of the small vocabularies."""
    vocabulary = {name: GOLDEN[kind].get(name) for name in ("tokens", "token_type", "scores", "merges")}
    named = {"model": model} | {name: values for name, values in vocabulary.items() if values} | keys
    metadata = {f"tokenizer.ggml.{name}": value for name, value in named.items()}
    return tokenizer_from_gguf(Path("model.gguf"), metadata, len(GOLDEN[kind]["tokens"]), None)


def sentencepiece(**keys: Any) -> CheckpointTokenizer:
    return read("llama", "sentencepiece", **keys)


def check(tokenizer: CheckpointTokenizer, ids: list[list[int]], texts: list[str], prefix: str) -> None:
    for text, expected, piece in zip(INPUTS, ids, texts, strict=True):
        assert tokenizer.backend.encode(text, add_special_tokens=False).ids == expected, text
        said = bytes.fromhex(piece).removeprefix(prefix.encode()).decode("utf-8", errors="replace")
        assert tokenizer.backend.decode(expected, skip_special_tokens=False) == said, text


@pytest.mark.parametrize("case", GOLDEN["sentencepiece"]["cases"])
def test_sentencepiece_is_read_as_llama_cpp_does(case: dict[str, Any]) -> None:
    """Merges by score and from the left, bytes, a space before each text; it is gone when it is decoded."""
    prefix = case["add_space_prefix"]
    tokenizer = sentencepiece(add_space_prefix=prefix)
    check(tokenizer, case["ids"], case["texts"], " " if prefix else "")


def test_gemma4_is_read_as_llama_cpp_does() -> None:
    golden = GOLDEN["gemma4"]
    check(read("gemma4", "gemma4"), golden["ids"], golden["texts"], "")


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_bytes_are_split_as_llama_cpp_does(pre: str) -> None:
    golden = GOLDEN["byte_level"]
    same = next(name for name in golden["ids"] if PRE_TOKENIZERS[name] == PRE_TOKENIZERS[pre])
    check(read("gpt2", "byte_level", pre=pre), golden["ids"][same], golden["texts"], "")


def test_what_a_file_of_type_llama_need_not_say() -> None:
    config = sentencepiece().config
    assert (config.bos_token_id, config.add_bos_token, config.eos_token_ids[0]) == (1, True, 2)
    assert config.special_tokens == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    assert not sentencepiece(add_bos_token=False).config.add_bos_token
    assert read("gemma4", "gemma4", bos_token_id=2, add_bos_token=False).config.add_bos_token


def test_control_tokens_of_phi3_take_in_white_space_behind_them() -> None:
    tokens = GOLDEN["sentencepiece"]
    metadata = {f"tokenizer.ggml.{key}": tokens[key] for key in ("tokens", "token_type", "scores")}
    metadata |= {"tokenizer.ggml.model": "llama", "general.name": "Phi-3 mini"}
    phi3 = tokenizer_from_gguf(Path("model.gguf"), metadata, len(tokens["tokens"]), None).backend
    other = sentencepiece().backend
    user = other.token_to_id("<user>")
    assert phi3.encode("<user>\n the").ids == [user, *other.encode("the").ids]
    assert other.encode("<user>\n the").ids == [user, *other.encode("\n the").ids]


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=40))
def test_any_text_comes_back_in_pieces(text: str) -> None:
    """Whole characters only, though most of them are byte tokens; ▁ alone is a space for good."""
    bundle = BundleTokenizer(TOKENIZER.backend, TOKENIZER.config)
    ids = bundle.encode_rendered(text)
    assert bundle.decode(ids) == text
    stream = Detokenizer(bundle.decode)
    pieces = []
    for token in ids:
        stream.push(token)
        pieces.append(stream.take())
    stream.finish()
    assert "".join([*pieces, stream.take()]) == text


@pytest.mark.parametrize(
    ("prompt", "reply", "said"),
    [
        ("The cache", " of the fold", " of the fold"),  # goes on with a text
        ("<user>", "of the fold", "of the fold"),  # begins one, whose first space encoding adds
        ("", "of", "of"),
        ("a", "é日", "é日"),
    ],
)
def test_a_reply_goes_on_with_its_prompt(prompt: str, reply: str, said: str) -> None:
    bundle = BundleTokenizer(TOKENIZER.backend, TOKENIZER.config)
    before = bundle.encode_rendered(by_template(prompt))
    whole = bundle.encode_rendered(by_template(prompt + reply))
    assert whole[: len(before)] == before
    stream = Detokenizer(bundle.decode, before=before[-1:])
    for token in whole[len(before) :]:
        stream.push(token)
    stream.finish()
    assert stream.text == said
    assert decode_after(bundle, before[-1:], whole[len(before) :]) == said


TOKENIZER = sentencepiece()


def test_a_reply_that_is_cut_within_a_character_keeps_those_before_it() -> None:
    """The library takes a run of byte tokens as a whole: with a part of a character, none of it is text."""
    bundle = BundleTokenizer(TOKENIZER.backend, TOKENIZER.config)
    byte_tokens = [3 + byte for byte in "龍龍".encode()]
    assert bundle.decode(byte_tokens[:5]) == "\ufffd" * 5
    stream = Detokenizer(bundle.decode)
    for token in byte_tokens[:5]:
        stream.push(token)
    assert stream.text == "龍"
    stream.finish()
    assert stream.text == "龍\ufffd\ufffd"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"scores": None}, "has no tokenizer.ggml.scores"),
        ({"scores": [0.0]}, r"1 of \d+ tokens have tokenizer.ggml.scores"),
        ({"token_type": [1]}, r"1 of \d+ tokens have tokenizer.ggml.token_type"),
        ({"tokens": ["a", "a"], "token_type": [1, 1], "scores": [0.0, 0.0]}, "a token occurs twice"),
        ({"tokens": "abc"}, "has no tokenizer.ggml.tokens"),
    ],
)
def test_inconsistent_sentencepiece_vocabularies_are_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=f"{named}.*tokenizer.json next to"):
        sentencepiece(**changes)


def test_a_vocabulary_larger_than_the_embedding_is_of_another_model() -> None:
    tokens = GOLDEN["sentencepiece"]
    metadata = {f"tokenizer.ggml.{key}": tokens[key] for key in ("tokens", "token_type", "scores")}
    with pytest.raises(
        CheckpointError, match=r"has token id \d+, the model's vocab_size is 100; they do not"
    ):
        tokenizer_from_gguf(Path("model.gguf"), metadata | {"tokenizer.ggml.model": "llama"}, 100, None)


def test_unknown_pre_tokenizers_are_refused_with_the_known_ones() -> None:
    with pytest.raises(UnsupportedModelError, match=r"pre-tokenizer nosuch .* bloom, .*, viking"):
        read("gpt2", "byte_level", pre="nosuch")


def test_tokens_of_no_known_kind_are_plain() -> None:
    kinds = [99 if kind == TokenType.USER_DEFINED else kind for kind in GOLDEN["sentencepiece"]["token_type"]]
    added = sentencepiece(token_type=kinds).backend.get_added_tokens_decoder().values()
    assert "<think>" not in {token.content for token in added}

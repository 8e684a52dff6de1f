"""Streamed text: whole characters only, and nothing that a stop text takes back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from kvfold.plugins.contract.errors import BundleError, RequestError
from kvfold.plugins.contract.template_text import by_template
from kvfold.plugins.contract.tokenizer_config import TokenizerConfig
from kvfold.runtime.text.detokenize import Detokenizer
from kvfold.runtime.text.tokenizer import BundleTokenizer
from tests.runtime.byte_tokenizer import ByteTokenizer

BYTES = ByteTokenizer()
TEXTS = ["naïve café", "日本語のテキスト", "🙂👩‍👩‍👧 ok", "Привет, мир", "a\n\nb", "  leading"]


def stream(decoder: Detokenizer, tokens: list[int]) -> list[str]:
    pieces = []
    for token in tokens:
        stopped = decoder.push(token)
        pieces.append(decoder.take())
        if stopped:
            break
    decoder.finish()
    pieces.append(decoder.take())
    return pieces


def byte_level_bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet, special_tokens=["<|end|>"])
    tokenizer.train_from_iterator(["the cat and the hat", "日本語"], trainer)
    return tokenizer


def metaspace_with_byte_fallback() -> Tokenizer:
    """The way sentencepiece models of llama and mistral are converted."""
    vocab = {"<unk>": 0} | {f"<0x{byte:02X}>": byte + 1 for byte in range(256)}
    for piece in ["▁", "n", "a", "c", "f", "▁a", "o", "k", "b", "l", "e", "d", "i", "g"]:
        vocab[piece] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab, [("▁", "a")], byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    return tokenizer


@pytest.mark.parametrize("make", [byte_level_bpe, metaspace_with_byte_fallback])
@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_whole_characters_and_add_up(make: type, text: str) -> None:
    tokenizer = BundleTokenizer(make(), TokenizerConfig())
    tokens = tokenizer.encode(text)
    pieces = stream(Detokenizer(tokenizer.decode), tokens)
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) == tokenizer.decode(tokens) == text.replace("  leading", tokenizer.decode(tokens))
    assert sum(map(bool, pieces)) > 3, "the text must come in pieces"


@given(st.text(max_size=30))
def test_any_text_survives(text: str) -> None:
    assert "".join(stream(Detokenizer(BYTES.decode), list(text.encode()))) == text


@given(st.binary(max_size=30))
def test_invalid_bytes_become_replacements_and_streaming_equals_the_whole(data: bytes) -> None:
    pieces = stream(Detokenizer(BYTES.decode), list(data))
    assert "".join(pieces) == data.decode("utf-8", errors="replace")


def test_half_a_character_waits() -> None:
    euro = list("€".encode())
    assert stream(Detokenizer(BYTES.decode), euro) == ["", "", "€", ""]
    assert stream(Detokenizer(BYTES.decode), euro[:2]) == ["", "", "\ufffd"]


def test_a_stop_text_ends_the_reply_across_tokens() -> None:
    decoder = Detokenizer(BYTES.decode, ("END", "\n\n"))
    pieces = stream(decoder, list(b"so EN EEND more"))
    assert "".join(pieces) == "so EN E" == decoder.text
    assert decoder.stopped


def test_what_may_become_a_stop_text_is_held_back_until_it_is_decided() -> None:
    decoder = Detokenizer(BYTES.decode, ("abac",))
    assert [(decoder.push(token), decoder.take())[1] for token in b"xabab"] == ["x", "", "", "", "ab"]
    decoder.finish()
    assert decoder.take() == "ab"


@given(text=st.text("ab", max_size=20), stop=st.text("ab", min_size=1, max_size=4))
def test_the_earliest_stop_text_counts(text: str, stop: str) -> None:
    decoder = Detokenizer(BYTES.decode, (stop,))
    pieces = stream(decoder, list(text.encode()))
    assert "".join(pieces) == text.split(stop)[0]
    assert decoder.stopped == (stop in text)


def test_special_tokens_are_no_text_but_can_be_rendered() -> None:
    tokenizer = BundleTokenizer(byte_level_bpe(), TokenizerConfig(bos_token_id=0, add_bos_token=True))
    tokens = tokenizer.encode("the cat")
    assert tokens[0] == 0
    assert tokenizer.encode_rendered(by_template("<|end|>the cat")) == tokens
    assert tokenizer.decode(tokens) == "the cat"
    assert tokenizer.decode_rendered(tokens) == "<|end|>the cat"
    with pytest.raises(RequestError, match="no chat template"):
        tokenizer.render([{"role": "user", "content": "hi"}], add_generation_prompt=True)


def test_a_broken_tokenizer_file_is_named(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("bundle") / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        BundleTokenizer.load(path, path)

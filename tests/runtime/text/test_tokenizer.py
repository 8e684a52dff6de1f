"""The bundle's tokenizer: what it adds to a text, and what a tokenizer.json cannot make it do."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from kvfold.plugins.contract.errors import BundleError
from kvfold.plugins.contract.tokenizer_config import TokenizerConfig
from kvfold.runtime.text.tokenizer import BundleTokenizer
from tests.runtime.text.chat_tokenizers import TOKENIZERS


def save(folder: Path, config: TokenizerConfig, *, truncate: bool = False, pad: bool = False) -> None:
    tokenizer = Tokenizer(WordLevel({"[PAD]": 0, "<s>": 1, "a": 2, "b": 3}, unk_token="[PAD]"))
    tokenizer.pre_tokenizer = Whitespace()
    if truncate:
        tokenizer.enable_truncation(max_length=2)
    if pad:
        tokenizer.enable_padding(length=8)
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    (folder / "tokenizer_config.json").write_text(config.model_dump_json())


def load(folder: Path) -> BundleTokenizer:
    return BundleTokenizer.load(folder / "tokenizer.json", folder / "tokenizer_config.json")


@pytest.mark.parametrize(("truncate", "pad"), [(True, False), (False, True), (True, True)])
def test_a_prompt_is_never_cut_or_padded(tmp_path: Path, truncate: bool, pad: bool) -> None:
    save(tmp_path, TokenizerConfig(), truncate=truncate, pad=pad)
    assert load(tmp_path).encode("a b a b a") == [2, 3, 2, 3, 2]


def test_a_plain_prompt_begins_with_bos_where_the_model_wants_one(tmp_path: Path) -> None:
    save(tmp_path, TokenizerConfig(bos_token_id=1, add_bos_token=True))
    tokenizer = load(tmp_path)
    assert tokenizer.encode("a") == [1, 2]
    assert tokenizer.encode_rendered("a") == [2]


def test_a_damaged_tokenizer_is_refused(tmp_path: Path) -> None:
    save(tmp_path, TokenizerConfig())
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(BundleError, match="cannot be read as a tokenizer"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["qwen", "gguf smollm"])
def test_special_tokens_are_left_out_but_for_those_to_keep(name: str) -> None:
    tokenizer = BundleTokenizer(TOKENIZERS[name](), TokenizerConfig())
    added = tokenizer.added_tokens
    ids = [added["<|im_start|>"], *tokenizer.encode("the é", control_tokens=False), added["<think>"]]
    ids.append(added["<|im_end|>"])
    assert tokenizer.decode(ids) == "the é<think>"
    assert tokenizer.decode(ids, keep={added["<|im_end|>"]}) == "the é<think><|im_end|>"
    assert tokenizer.decode(ids, keep=added.values()) == tokenizer.decode_rendered(ids)


def test_other_threads_run_while_a_long_text_is_read(tmp_path: Path) -> None:
    save(tmp_path, TokenizerConfig())
    tokenizer, text = load(tmp_path), "a b " * 300_000
    turns, read = 0, threading.Event()

    def count_turns() -> None:
        nonlocal turns
        while not read.is_set():
            time.sleep(0.001)
            turns += 1

    with ThreadPoolExecutor(1) as pool:
        counted = pool.submit(count_turns)
        tokenizer.encode(text)
        within = turns
        read.set()
        counted.result()
    assert within > 10


def test_the_longest_token_is_known(tmp_path: Path) -> None:
    save(tmp_path, TokenizerConfig())
    assert load(tmp_path).longest_token == len("[PAD]")

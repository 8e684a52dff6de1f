"""Tokenizers: equal to llama.cpp for a GGUF, as it is for a folder, and refused by name where unknown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gguf import GGMLQuantizationType
from tokenizers import Tokenizer, models, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from kvfold.export.checkpoint.checkpoint_tokenizer import CheckpointTokenizer
from kvfold.export.checkpoint.gguf_header import read_gguf_header
from kvfold.export.checkpoint.gguf_tokenizer import tokenizer_from_gguf
from kvfold.export.checkpoint.huggingface_tokenizer import tokenizer_from_huggingface
from kvfold.export.checkpoint.load_checkpoint import load_checkpoint
from kvfold.plugins.contract.chat_template import render_chat
from kvfold.plugins.contract.errors import CheckpointError, RequestError, UnsupportedModelError
from kvfold.plugins.contract.tokenizer_config import TokenizerConfig
from kvfold.runtime.text.tokenizer import BundleTokenizer
from tests.export.tiny_checkpoints import random_model, tiny_tokenizer, write_folder
from tests.export.tiny_gguf import write_gguf

# Written once with llama.cpp; `made_by` in the file says how.
GOLDEN = json.loads((Path(__file__).parent / "data" / "llama_cpp_tokens.json").read_text())
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}\n"
    "    {% if message.role == 'system' %}{{ raise_exception('no system') }}{% endif %}\n"
    "[{{ message.role }}] {{ message.content | tojson }}\n"
    "    {% generation %}x{% endgeneration %}{% if loop.last %}{% break %}{% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


def encode(tokenizer: CheckpointTokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.backend.encode(text, add_special_tokens=False).ids
    return ids


@pytest.fixture(scope="session")
def smollm2_metadata(smollm2_gguf: Path) -> dict[str, Any]:
    return read_gguf_header(smollm2_gguf).metadata


@pytest.mark.parametrize("pre", GOLDEN["ids"])
def test_gguf_tokens_equal_llama_cpp(pre: str, smollm2_gguf: Path, smollm2_metadata: dict[str, Any]) -> None:
    metadata = smollm2_metadata | {"tokenizer.ggml.pre": pre}
    tokenizer = tokenizer_from_gguf(smollm2_gguf, metadata, 49152, None)
    for text, ids in zip(GOLDEN["texts"], GOLDEN["ids"][pre], strict=True):
        assert encode(tokenizer, text) == ids, text


def test_gguf_text_comes_back(smollm2_gguf: Path, smollm2_metadata: dict[str, Any]) -> None:
    tokenizer = tokenizer_from_gguf(smollm2_gguf, smollm2_metadata, 49152, None)
    text = "Größe 12.5 你好 😀\n\tdef f(): pass <|im_end|>"
    assert tokenizer.backend.decode(encode(tokenizer, text), skip_special_tokens=False) == text


def test_gguf_special_tokens(smollm2_gguf: Path, smollm2_metadata: dict[str, Any]) -> None:
    config = tokenizer_from_gguf(smollm2_gguf, smollm2_metadata, 49152, None).config
    assert (config.bos_token_id, config.add_bos_token) == (1, False)
    assert config.eos_token_ids == (2, 0)  # <|im_end|> as declared, then <|endoftext|>
    assert config.special_tokens["eos_token"] == "<|im_end|>"
    assert "<|im_start|>user\nHi<|im_end|>" in render_chat(config, [{"role": "user", "content": "Hi"}])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"tokenizer.ggml.model": "bert"}, "vocabularies of type bert"),
        ({"tokenizer.ggml.pre": "kimi-k2"}, "pre-tokenizer kimi-k2"),
    ],
)
def test_unknown_gguf_tokenizers_are_refused_by_name(changes: dict[str, str], named: str) -> None:
    metadata = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm"} | changes
    with pytest.raises(
        UnsupportedModelError,
        match=f"{named} (is|are) not supported; place the model's tokenizer.json next .* Supported are .*gpt",
    ):
        tokenizer_from_gguf(Path("model.gguf"), metadata, 97, None)


@pytest.mark.parametrize(
    "changes", [{"tokenizer.ggml.merges": ["a zz"]}, {"tokenizer.ggml.merges": ["ab"]}, {}]
)
def test_inconsistent_gguf_vocabulary_is_refused(changes: dict[str, Any]) -> None:
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": ["a", "b", "ab"],
        "tokenizer.ggml.token_type": [1, 1, 1],
    }
    with pytest.raises(CheckpointError, match=r"tokenizer\.json next to the GGUF file"):
        tokenizer_from_gguf(Path("model.gguf"), metadata | changes, 97, None)


def test_tokenizer_json_next_to_a_gguf_takes_precedence(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", random_model("llama"), GGMLQuantizationType.F32)
    assert encode(load_checkpoint(path).tokenizer, "ab") == [95]
    tokenizer = json.loads(tiny_tokenizer().to_str())
    tokenizer["model"]["merges"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    checkpoint = load_checkpoint(path)
    assert encode(checkpoint.tokenizer, "ab") == [65, 66]
    assert tmp_path / "tokenizer.json" in checkpoint.files


def test_folder_keeps_tokenizer_json_and_collects_the_rest(tmp_path: Path) -> None:
    write_folder(tmp_path, random_model("llama"))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 8]}')
    declared = {
        "bos_token": {"content": "A"},
        "eos_token": "B",
        "add_bos_token": True,
        "chat_template": TEMPLATE,
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(declared))
    tokenizer = load_checkpoint(tmp_path).tokenizer
    assert tokenizer.json == (tmp_path / "tokenizer.json").read_text()
    assert tokenizer.config.bos_token_id == 33
    assert tokenizer.config.add_bos_token
    assert tokenizer.config.eos_token_ids == (
        7,
        8,
        2,
        34,
        96,
    )  # generation, config.json, eos_token, <|im_end|>
    assert tokenizer.config.special_tokens == {"bos_token": "A", "eos_token": "B"}


@pytest.mark.parametrize("eos", [-1, 97, [-1, 97]])
def test_ids_that_no_logit_stands_for_are_left_out(tmp_path: Path, eos: object) -> None:
    """Configs say -1 for none; such an end would be written into text, and banned before `min_tokens`."""
    folder = write_folder(tmp_path, random_model("llama"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"bos_token_id": -1, "eos_token_id": eos}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    read = load_checkpoint(folder).tokenizer.config
    assert (read.bos_token_id, read.add_bos_token, read.eos_token_ids) == (None, False, (96,))


@pytest.mark.parametrize(
    ("writes_bos", "declared"),
    [
        (False, {"tokenizer_class": "LlamaTokenizerFast"}),
        (False, {"tokenizer_class": "GemmaTokenizer"}),
        (True, {"tokenizer_class": "LlamaTokenizer", "add_bos_token": False}),
        (True, {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": None}),
        (False, {"tokenizer_class": "PreTrainedTokenizerFast"}),
    ],
)
def test_a_text_begins_as_in_transformers(
    tmp_path: Path, writes_bos: bool, declared: dict[str, object]
) -> None:
    """Two classes write BOS themselves, where tokenizer.json does not say it."""
    folder = write_folder(tmp_path, random_model("llama"))
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens(["<s>"])
    if writes_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 97)]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    texts = {"bos_token": "<s>", "eos_token": "<|im_end|>", "unk_token": "!"}
    (folder / "tokenizer_config.json").write_text(json.dumps(texts | declared))
    names = ("config.json", "generation_config.json", "tokenizer_config.json")
    files = {name: json.loads((folder / name).read_text()) for name in names}
    read = tokenizer_from_huggingface(folder, files, 98)
    theirs: Any = AutoTokenizer.from_pretrained(folder)  # type: ignore[no-untyped-call]
    assert BundleTokenizer(read.backend, read.config).encode("ab") == theirs("ab")["input_ids"]


def test_a_vocabulary_that_spells_no_letter_is_read(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, random_model("llama"))
    tokenizer = Tokenizer(models.BPE(vocab={"1": 0, "2": 1}, merges=[]))
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>"}')
    read = load_checkpoint(folder).tokenizer.config
    assert (read.bos_token_id, read.add_bos_token) == (2, False)


@pytest.mark.parametrize(
    ("file", "key", "value", "named"),
    [
        ("generation_config.json", "eos_token_id", "<|im_end|>", "a token's id or a list of them"),
        ("generation_config.json", "eos_token_id", [2, None], "a token's id or a list of them"),
        ("config.json", "bos_token_id", "<s>", "a token's id or a list of them"),
        ("tokenizer_config.json", "bos_token", 1, "a text, or an object with its content"),
        ("tokenizer_config.json", "eos_token", {"text": "B"}, "a text, or an object with its content"),
    ],
)
def test_a_special_token_that_is_none_is_named(
    tmp_path: Path, file: str, key: str, value: object, named: str
) -> None:
    folder = write_folder(tmp_path, random_model("llama"))
    path = folder / file
    said = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(said | {key: value}))
    with pytest.raises(CheckpointError, match=f"{file}: {key} must be {named}, not "):
        load_checkpoint(folder)


def test_chat_template_file_takes_precedence(tmp_path: Path) -> None:
    write_folder(tmp_path, random_model("llama"))
    (tmp_path / "tokenizer_config.json").write_text(
        '{"chat_template": [{"name": "default", "template": "old"}]}'
    )
    assert load_checkpoint(tmp_path).tokenizer.config.chat_template == "old"
    (tmp_path / "chat_template.jinja").write_text("new")
    assert load_checkpoint(tmp_path).tokenizer.config.chat_template == "new"


@pytest.mark.parametrize(
    "declared",
    [
        {"default": "the one"},
        {"tool_use": "x", "default": "the one"},
        [{"name": "default", "template": "the one"}],
    ],
)
def test_named_chat_templates_are_read_as_transformers_does(tmp_path: Path, declared: object) -> None:
    write_folder(tmp_path, random_model("llama"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": declared}))
    assert load_checkpoint(tmp_path).tokenizer.config.chat_template == "the one"
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert theirs.get_chat_template() == "the one"


@pytest.mark.parametrize(
    ("declared", "named"),
    [
        ({"tool_use": "x"}, "called tool_use and none called default"),
        ([{"name": "rag", "template": "x"}], "called rag and none called default"),
        (3, "the chat template is 3; it must be a text"),
        ({"default": ["x"]}, r"the chat template is \['x'\]; it must be a text"),
        (["x"], r"the chat template is \['x'\]; it must be a text"),
        ("{% for m in messages %}", "the chat template is broken: line 1: Unexpected end"),
        ("\n{{ messages | nosuch }}", "the chat template is broken: line 2: No filter named 'nosuch'"),
        ("{{ messages[0].nosuch.content }}", "the chat template is broken: .* has no attribute 'nosuch'"),
        ("{{ messages[0].content / 2 }}", "the chat template is broken: unsupported operand"),
        ("{% for x in range(99999999) %}{% endfor %}", "the chat template is broken: Range too big"),
        ("{{ raise_exception('not for chats') }}", "refuses every small chat: not for chats"),
    ],
)
def test_a_chat_template_that_does_not_work_is_named_when_it_is_read(
    tmp_path: Path, declared: object, named: str
) -> None:
    """Before anything is built on it, and with what to do."""
    write_folder(tmp_path, random_model("llama"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": declared}))
    with pytest.raises(CheckpointError, match=f"tokenizer_config.json.*{named}"):
        load_checkpoint(tmp_path)


def test_a_broken_template_of_a_gguf_file_is_named(tmp_path: Path) -> None:
    model = random_model("llama")
    path = write_gguf(tmp_path / "model.gguf", model, GGMLQuantizationType.F32, chat_template="{{ oops")
    with pytest.raises(
        CheckpointError, match=r"model\.gguf: the chat template is broken: line 1: .*; correct the"
    ):
        load_checkpoint(path)


def test_a_template_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path, random_model("llama"))
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja is not UTF-8"):
        load_checkpoint(tmp_path)


def test_a_template_that_refuses_a_system_message_is_no_broken_one(tmp_path: Path) -> None:
    write_folder(tmp_path, random_model("llama"))
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    assert load_checkpoint(tmp_path).tokenizer.config.chat_template == TEMPLATE


def test_saved_files_are_read_back(tmp_path: Path) -> None:
    tokenizer = load_checkpoint(write_folder(tmp_path / "model", random_model("llama"))).tokenizer
    tokenizer.save(tmp_path)
    assert TokenizerConfig.parse((tmp_path / "tokenizer_config.json").read_bytes()) == tokenizer.config
    assert (tmp_path / "tokenizer.json").read_text() == tokenizer.json


def test_chats_are_rendered_as_transformers_does() -> None:
    messages = [{"role": "user", "content": 'é <b> "q"'}, {"role": "assistant", "content": "ok"}]
    config = TokenizerConfig(chat_template=TEMPLATE, special_tokens={"bos_token": "A"})
    for prompted in (True, False):
        rendered: Any = render_jinja_template(
            [messages], chat_template=TEMPLATE, add_generation_prompt=prompted, bos_token="A"
        )
        assert render_chat(config, messages, add_generation_prompt=prompted) == rendered[0][0]


@pytest.mark.parametrize(
    ("template", "named"),
    [(None, "no chat template"), (TEMPLATE, "refuses these messages: no system"), ("{{", "refuses")],
)
def test_chats_that_cannot_be_rendered_are_refused(template: str | None, named: str) -> None:
    with pytest.raises(RequestError, match=named):
        render_chat(TokenizerConfig(chat_template=template), [{"role": "system", "content": ""}])


def test_chat_templates_run_in_a_sandbox() -> None:
    template = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(RequestError, match="unsafe"):
        render_chat(TokenizerConfig(chat_template=template), [])


def test_a_tokenizer_that_cuts_or_pads_does_not() -> None:
    backend = tiny_tokenizer()
    backend.enable_truncation(max_length=1)
    backend.enable_padding(length=8)
    tokenizer = CheckpointTokenizer(backend.to_str(), TokenizerConfig())
    assert len(encode(tokenizer, "A B A B")) > 1
    assert encode(tokenizer, "A") == tiny_tokenizer().encode("A").ids

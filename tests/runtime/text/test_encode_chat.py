"""A chat as tokens: where its messages begin."""

from __future__ import annotations

from tokenizers import AddedToken

from kvfold.plugins.contract.chat_template import Message
from kvfold.plugins.contract.template_text import by_template
from kvfold.plugins.contract.tokenizer_config import TokenizerConfig
from kvfold.runtime.text.chat import EncodedChat, encode_chat
from kvfold.runtime.text.tokenizer import BundleTokenizer
from tests.runtime.byte_tokenizer import SPECIAL, ByteTokenizer
from tests.runtime.text.chat_tokenizers import TOKENIZERS


def test_the_last_messages_begin_at_borders() -> None:
    texts = ["be brief", "<|im_start|>", "yes", "and?", "no", "why"]
    roles = ["system", "user", "assistant", "user", "assistant", "user"]
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
    chat = encode_chat(ByteTokenizer(), messages)
    openings = [place for place, token in enumerate(chat.token_ids) if token == SPECIAL["<|im_start|>"]]
    assert len(openings) == 7, "six messages and the reply; what a message spells is text"
    assert chat.borders == tuple(openings[2:6])
    edited = encode_chat(ByteTokenizer(), [*messages[:-1], {"role": "user", "content": "how"}])
    border = chat.borders[-1]
    assert edited.token_ids[:border] == chat.token_ids[:border]


def test_what_a_control_token_takes_in_is_no_text_behind_a_reply_either() -> None:
    """As Phi-3's do: the template writes a line end behind each, which is no token."""
    backend = TOKENIZERS["llama2"]()
    backend.add_special_tokens([AddedToken("<|end|>", rstrip=True, normalized=False)])
    template = "{% for m in messages %}<|user|>{{ m.content }}<|end|>\n{% endfor %}"
    config = TokenizerConfig(chat_template=template, eos_token_ids=(backend.token_to_id("<|end|>"),))
    tokenizer = BundleTokenizer(backend, config)
    first: list[Message] = [{"role": "user", "content": "the"}]
    whole: list[Message] = [*first, {"role": "user", "content": "im"}]
    prompt = tokenizer.render(first, add_generation_prompt=True)[: -len("<|end|>\n")]
    known = EncodedChat(
        prompt + by_template("<|end|>"), tokenizer.encode_rendered(prompt + by_template("<|end|>"))
    )
    assert known.token_ids[-1] == config.eos_token_ids[0]
    assert encode_chat(tokenizer, whole, known).token_ids == encode_chat(tokenizer, whole).token_ids


def test_an_added_letter_is_text_and_an_added_word_is_not() -> None:
    backend = TOKENIZERS["qwen"]()
    backend.add_tokens([AddedToken("ö", normalized=False), AddedToken("<x>", normalized=False)])
    tokenizer = BundleTokenizer(backend, TokenizerConfig())
    letter, word = backend.token_to_id("ö"), backend.token_to_id("<x>")
    ids = tokenizer.encode("ö<x>", control_tokens=False)
    assert letter in ids
    assert word not in ids

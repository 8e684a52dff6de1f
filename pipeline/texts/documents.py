"""Texts from a .txt or .jsonl file, read as far as they are needed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kvfold.plugins.contract.chat_template import render_chat
from kvfold.plugins.contract.errors import CalibrationError, RequestError
from kvfold.plugins.contract.tokenizer_config import TokenizerConfig

# A plain text is handed on in pieces of about so many characters, cut at line ends.
PIECE = 32_768


@dataclass(frozen=True)
class Document:
    """A text, or a piece of one.

    Attributes:
        text: as it stands in the file, or as the chat template renders it (a TemplateText then): what a
            file spells is text, control tokens are those that a template writes.
        needs_bos: whether the model's BOS token belongs before it: not where a template has written its
            special tokens, nor where it goes on from the piece before.
    """

    text: str
    needs_bos: bool = True


def read_documents(path: Path, config: TokenizerConfig) -> Iterator[Document]:
    """The documents of a .txt file (its text), or of a .jsonl file (one a line).

    A .jsonl line is `{"text": ...}`, `{"messages": [...]}` or a list of messages; messages are
    rendered through the chat template of `config`.

    Raises:
        CalibrationError: the file is missing, of another kind, not UTF-8, or a line is malformed.
    """
    readers = {".txt": _read_text, ".jsonl": _read_lines}
    if path.suffix not in readers:
        raise CalibrationError(f'{path}: calibration text is a .txt or .jsonl file, or "generate"')
    try:
        yield from readers[path.suffix](path, config)
    except OSError as error:
        raise CalibrationError(f"{path} cannot be read: {error.strerror}; check the path") from error
    except UnicodeDecodeError as error:
        raise CalibrationError(f"{path} is not UTF-8 text: {error}; convert it first") from error


def _read_text(path: Path, config: TokenizerConfig) -> Iterator[Document]:
    with path.open(encoding="utf-8") as file:
        needs_bos = True
        while lines := file.readlines(PIECE):
            yield Document("".join(lines), needs_bos)
            needs_bos = False


def _read_lines(path: Path, config: TokenizerConfig) -> Iterator[Document]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _parse_line(f"{path}, line {number}", line, config)


def _parse_line(where: str, line: str, config: TokenizerConfig) -> Document:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise CalibrationError(f"{where} is not valid JSON: {error}") from error
    messages = value.get("messages") if isinstance(value, dict) else value
    if isinstance(messages, list) and messages and all(isinstance(item, dict) for item in messages):
        try:
            document = Document(render_chat(config, messages, add_generation_prompt=False), needs_bos=False)
        except RequestError as error:
            raise CalibrationError(f"{where}: {error}") from error
    elif isinstance(value, dict) and isinstance(value.get("text"), str):
        document = Document(value["text"])
    else:
        raise CalibrationError(
            f'{where} needs a "text", or "messages" with at least one message: {line.strip():.60}'
        )
    try:
        document.text.encode()
    except UnicodeEncodeError as error:
        raise CalibrationError(f"{where} holds half a character: {error}; cut it at a whole one") from error
    return document

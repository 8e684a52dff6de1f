"""How models write a call of a tool: a row for each format, chosen by what the chat template mentions."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CallFormat:
    """Calls are blocks: `mark` `begin`, a call, `separator`, a call, ..., `end`.

    A call is `before` NAME `between` ARGUMENTS `after`. What of these texts is a token of the tokenizer by
    itself, such as `<tool_call>`, is that token.

    Attributes:
        mentions: the chat template has one of these texts.
        mark: shows that a block begins; empty: the reply itself is a block.
        begin, end: the rest of what stands around a block.
        before, between, after: around the name and the arguments, which are a JSON object.
        separator: between calls within a block; None: a block has one call.
        block_separator: between blocks; None: there is one block.
    """

    name: str
    mentions: tuple[str, ...]
    mark: str
    begin: str
    end: str
    before: str = '{"name": "'
    between: str = '", "arguments": '
    after: str = "}"
    separator: str | None = None
    block_separator: str | None = None

    @property
    def head(self) -> str:
        """What a reply says before the first name of a block."""
        return self.mark + self.begin + self.before

    @property
    def texts(self) -> tuple[str, ...]:
        """Everything that it writes around names and arguments."""
        between = (self.between, self.after, self.separator or "", self.block_separator or "")
        return (self.head, *between, self.end)


HERMES = CallFormat("hermes", ("<tool_call>",), "<tool_call>", "\n", "\n</tool_call>", block_separator="\n")
CALL_FORMATS = (
    HERMES,
    # Mistral's templates, from the newest tokenizer's to the oldest's.
    CallFormat("mistral-args", ("[ARGS]",), "[TOOL_CALLS]", "", "", "", "[ARGS]", "", block_separator=""),
    CallFormat("mistral", ("[TOOL_CALLS][",), "[TOOL_CALLS]", "[", "]", separator=", "),
    CallFormat("mistral-spaced", ("[TOOL_CALLS]",), "[TOOL_CALLS]", " [", "]", separator=", "),
    CallFormat(
        "llama-3.1", ("<|python_tag|>", "'\"parameters\": '"), "", "", "", between='", "parameters": '
    ),
)


def choose_call_format(template: str | None) -> CallFormat:
    """The format that a chat template writes; Hermes' where it mentions none."""
    for row in CALL_FORMATS:
        if any(text in (template or "") for text in row.mentions):
            return row
    return HERMES

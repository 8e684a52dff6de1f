"""Reasoning before the answer: which marks stand around it, and whether the prompt has opened it."""

from __future__ import annotations

from dataclasses import dataclass

from kvfold.plugins.contract.template_text import written_by_template


@dataclass(frozen=True)
class Reasoning:
    """A reply may begin with reasoning between two marks.

    Attributes:
        begin, end: the marks; each may be a token of the tokenizer by itself, or plain text.
        opened: the prompt ends with `begin`, so that the reply is reasoning from its first token.
    """

    begin: str
    end: str
    opened: bool = False


MARKS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))


def find_reasoning(template: str | None, prompt: str) -> Reasoning | None:
    """The reasoning that a chat template marks; None where it marks none.

    Args:
        template: of the model.
        prompt: a rendered chat with the generation prompt. What a message spells at its end opens nothing.
    """
    for begin, end in MARKS:
        if begin in (template or ""):
            tail = prompt.rstrip()[-len(begin) :]
            return Reasoning(begin, end, tail == begin and 0 not in written_by_template(tail))
    return None

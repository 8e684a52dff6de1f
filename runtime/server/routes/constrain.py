"""Forms of replies and tools: grammars for the sampler, readers for the text, words for the template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kvfold.runtime.server.state import ServerState
from kvfold.runtime.server.wire.ask import Ask
from kvfold.runtime.server.wire.read_body import wrong
from kvfold.runtime.server.wire.reply_parts import ReplyReader
from kvfold.runtime.server.wire.template_messages import TemplateMessage


@dataclass(frozen=True)
class Constrained:
    """What holds a request's replies to the form it asks for."""

    def messages(self, messages: Sequence[TemplateMessage]) -> Sequence[TemplateMessage]:
        """The messages, with what the model must know of its tools."""
        return messages

    def service(self) -> dict[str, Any]:
        """A reply's own constraint."""
        return {}

    def reader(self) -> ReplyReader | None:
        """A reply's own reader; None where all of it is text."""
        return None


def constrain(state: ServerState, ask: Ask) -> Constrained:
    """The form that a request asks for; raises HttpError 400."""
    if ask.shape is not None:
        raise wrong("is not served yet", ask.shape.param)
    if ask.tools.mode != "none":
        raise wrong("is not served yet", "tools")
    return Constrained()

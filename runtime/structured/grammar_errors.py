"""What llguidance says of a grammar, as one sentence."""

from __future__ import annotations

import re

_PLACE = re.compile(r"^at \d+\(\d+\): |\(at \"(?:[^\"\\]|\\.)*\".*\)$")
_LENGTH = 300
_SENTENCES = {
    "NoExtensionBias": "nothing satisfies it",
    "NoExtension": "nothing satisfies it",
}


def explain_failure(message: str) -> str:
    """Its sentence, without the place in a grammar that was written for the user, and without traces."""
    lines = [line.strip() for line in message.splitlines()]
    cause = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), "")
    sentence = cause or _PLACE.sub("", lines[0] if lines else "").strip()
    sentence = sentence.partition("; following special tokens are available")[0]  # hundreds of them
    return _SENTENCES.get(sentence, sentence)[:_LENGTH] or "it gave no reason"

"""The tokens of a GGUF file: their texts, scores and kinds, and which of them a text is searched for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import TokenType
from tokenizers import AddedToken, Tokenizer

from kvfold.plugins.contract.errors import CheckpointError

ADVICE = "place the model's tokenizer.json next to the GGUF file; it then takes precedence"
# Texts that llama.cpp takes for control tokens whatever their declared kind: they end a turn or fill a gap.
CONTROL_TEXTS = frozenset(
    (
        *("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|endoftext|>"),
        *("<|end_of_text|>", "<end_of_turn>", "<end_of_utterance>", "<turn|>", "<|tool_response>"),
        *("</s>", "<eos>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<\uff5cend\u2581of\u2581sentence\uff5c>"),
        *(
            "<|fim_prefix|>",
            "<|fim_suffix|>",
            "<|fim_middle|>",
            "<|fim_pad|>",
            "<|fim_repo|>",
            "<|file_sep|>",
        ),
        *("<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<fim_pad>", "<PRE>", "<SUF>", "<MID>"),
        *("<fim-prefix>", "<fim-suffix>", "<fim-middle>", "<fim-pad>", "▁<PRE>", "▁<SUF>", "▁<MID>"),
        *(f"<\uff5cfim\u2581{part}\uff5c>" for part in ("begin", "hole", "end")),
    )
)
# Beside one of these, the text </s> is HTML.
PLAIN_END = ("<|tool_response>", "<|plamo:eos|>")
RECOGNISED = (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED)


@dataclass(frozen=True)
class GgufTokens:
    """The vocabulary's tokens by their ids.

    Attributes:
        texts: what each stands for, in the vocabulary's own spelling.
        kinds: their kinds, as llama.cpp corrects them.
        scores: the higher, the sooner two parts become this token; empty where the file has none.
        before_space: control tokens take in white space that follows them.
    """

    texts: tuple[str, ...]
    kinds: tuple[TokenType, ...]
    scores: tuple[float, ...]
    before_space: bool

    @property
    def ids(self) -> dict[str, int]:
        """Ids by text."""
        return {text: index for index, text in enumerate(self.texts)}

    @property
    def recognised(self) -> dict[str, TokenType]:
        """Kinds by text of the tokens that a text is searched for, whole, before anything else."""
        kinds = zip(self.texts, self.kinds, strict=True)
        return {text: kind for text, kind in kinds if kind in RECOGNISED}

    def text_of(self, kind: TokenType) -> str | None:
        """The first token of a kind."""
        return next((text for text, own in zip(self.texts, self.kinds, strict=True) if own == kind), None)

    def add_to(self, tokenizer: Tokenizer) -> None:
        """Have a text searched for the tokens that stand for themselves; all but the user's are special."""
        kept = ("<unk>", "<s>", "<|endoftext|>")
        tokenizer.add_tokens(
            [
                AddedToken(
                    text,
                    special=kind != TokenType.USER_DEFINED,
                    normalized=False,
                    rstrip=self.before_space and text not in kept,
                )
                for text, kind in self.recognised.items()
            ]
        )


def read_tokens(path: Path, metadata: Mapping[str, Any], needed: Sequence[str] = ()) -> GgufTokens:
    """The tokens of a file's metadata.

    Args:
        path: the file, for errors.
        metadata: all of it.
        needed: lists below `tokenizer.ggml` that must be there, beside the tokens' texts and kinds.

    Raises:
        CheckpointError: a list is missing, too short, or no list; or a token occurs twice.
    """
    lists = {name: metadata.get(f"tokenizer.ggml.{name}") for name in ("tokens", "token_type", *needed)}
    missing = [name for name, values in lists.items() if not isinstance(values, list)]
    if missing:
        raise CheckpointError(f"{path} has no tokenizer.ggml.{missing[0]}; {ADVICE}")
    texts = [text or f"[EMPTY_{index}]" for index, text in enumerate(metadata["tokenizer.ggml.tokens"])]
    if len(set(texts)) != len(texts):
        raise CheckpointError(f"{path}: the vocabulary is inconsistent: a token occurs twice; {ADVICE}")
    scores = metadata.get("tokenizer.ggml.scores", [])
    for name, values in (("token_type", lists["token_type"]), ("scores", scores)):
        if values and len(values) < len(texts):
            raise CheckpointError(
                f"{path}: the vocabulary is inconsistent: {len(values)} of {len(texts)} tokens have "
                f"tokenizer.ggml.{name}; {ADVICE}"
            )
    name = str(metadata.get("general.name", "")).lower()
    return GgufTokens(
        texts=tuple(texts),
        kinds=tuple(_kinds(texts, metadata["tokenizer.ggml.token_type"])),
        scores=tuple(scores),
        before_space="phi-3" in name or "phi3" in name,
    )


def _kinds(texts: Sequence[str], declared: Sequence[int]) -> list[TokenType]:
    known = set(TokenType)
    kinds = [TokenType(kind) if kind in known else TokenType.NORMAL for kind in declared[: len(texts)]]
    plain_end = any(text in PLAIN_END for text in texts)
    for index, text in enumerate(texts):
        if text == "</s>" and plain_end:
            kinds[index] = TokenType.NORMAL
        elif text in CONTROL_TEXTS:
            kinds[index] = TokenType.CONTROL
    return kinds

"""A trace as tokens: which ones are equal, and how a conversation goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kvfold.pipeline.bench.trace.trace_settings import ENDS, Ends, TraceSettings
from kvfold.pipeline.bench.trace.trace_turns import Turn, turns_of
from kvfold.plugins.contract.errors import RequestError
from tests.pipeline.bench.trace.made_up_traces import random_requests, request

SETTINGS = TraceSettings(Path("trace.jsonl"))
# A conversation of two turns, with another one between them; blocks of 512 tokens become 32.
FIRST, OTHER, SECOND = (
    request(1200, [1, 2, 30], reply=640),
    request(1100, [1, 20, 21]),
    request(3000, [1, 2, 3, 4, 5, 6]),
)


def shared(one: Turn, other: Turn) -> int:
    """Tokens that two turns begin with alike."""
    length = min(one.length, other.length)
    differs = np.flatnonzero(one.tokens[:length] != other.tokens[:length])
    return int(differs[0]) if len(differs) else length


def test_a_chat_goes_on_where_its_reply_ended() -> None:
    found = turns_of([FIRST, OTHER, SECOND], SETTINGS)
    first, other, second = found.turns
    assert found.continued == 1
    assert [turn.prompt_length for turn in found.turns] == [75, 68, 187]
    assert [turn.reply_length for turn in found.turns] == [40, 1, 1]
    assert shared(first, second) == first.length == 115
    assert shared(first, other) == 32


def test_a_reply_that_is_longer_than_what_goes_on_keeps_the_rest_to_itself() -> None:
    first, second = turns_of([replace(FIRST, output_length=3200), SECOND], SETTINGS).turns
    assert first.length == 75 + 200
    assert second.prompt_length <= shared(first, second) <= first.length


def test_prompts_may_end_where_their_last_whole_block_does() -> None:
    first, other, second = turns_of([FIRST, OTHER, SECOND], replace(SETTINGS, ends="whole")).turns
    assert [turn.length for turn in (first, other, second)] == [64, 64, 160]
    assert shared(first, second) == 64


def test_prompts_may_end_in_blocks_of_their_own() -> None:
    recorded = replace(SETTINGS, ends="recorded", block_tokens=512)
    first, other, second = turns_of([FIRST, OTHER, SECOND], recorded).turns
    assert [turn.length for turn in (first, other, second)] == [1200, 1100, 3000]
    assert shared(first, second) == 1024


def test_one_block_alone_is_no_conversation() -> None:
    assert turns_of([request(512, [1]), request(1024, [1, 2])], SETTINGS).continued == 0


def test_the_same_name_behind_another_prefix_is_no_conversation() -> None:
    found = turns_of([request(1024, [1, 2]), request(1536, [9, 2, 3])], SETTINGS)
    assert found.continued == 0
    assert shared(*found.turns) == 0


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("block_tokens", [32, 512])
def test_equal_blocks_are_equal_tokens_and_others_share_none(ends: Ends, block_tokens: int) -> None:
    requests = random_requests(1, 40)
    found = turns_of(requests, replace(SETTINGS, ends=ends, block_tokens=block_tokens))
    assert found.prompt_tokens == sum(turn.prompt_length for turn in found.turns)
    for turn in found.turns:
        assert len(set(turn.tokens.tolist())) == turn.length
        assert turn.tokens.min() >= 0 and turn.tokens.max() < found.vocab_size
    for index, one in enumerate(requests):
        for other, turn in zip(requests[:index], found.turns, strict=False):
            names = zip(one.hash_ids, other.hash_ids, strict=False)
            common = next((count for count, (a, b) in enumerate(names) if a != b), None)
            whole = min(each.input_length // 512 for each in (one, other))
            alike = whole if common is None else min(whole, common)
            assert shared(found.turns[index], turn) >= alike * block_tokens
            if common is not None and ends != "chat":
                assert shared(found.turns[index], turn) == common * block_tokens


def test_what_the_context_does_not_hold_is_cut() -> None:
    (turn,) = turns_of([request(3000, range(6), reply=1600)], replace(SETTINGS, context=150)).turns
    assert (turn.prompt_length, turn.reply_length) == (50, 100)
    (turn,) = turns_of([request(3000, range(6), reply=9999)], replace(SETTINGS, context=150)).turns
    assert (turn.prompt_length, turn.reply_length) == (1, 149)


def test_blocks_of_another_size_must_divide_the_trace_s() -> None:
    with pytest.raises(RequestError, match="block_tokens is 48, which does not divide 512"):
        TraceSettings(Path("trace.jsonl"), block_tokens=48)

"""What a user may ask a searched plan to reach."""

from __future__ import annotations

import pytest

from kvfold.export.search.space import ByteTarget
from kvfold.pipeline.studies.search.goal import make_goal, parse_target


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("2048@8k", ByteTarget(2048, 8192)),
        ("1.5k@2048", ByteTarget(1536, 2048)),
        ("0.5K@1K", ByteTarget(512, 1024)),
    ],
)
def test_targets(text: str, target: ByteTarget) -> None:
    assert parse_target(text) == target


@pytest.mark.parametrize("text", ["", "8k", "2048@", "a@8k", "-1@8k", "2@0", "2@k"])
def test_what_is_no_target_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # click turns it into its own
        parse_target(text)


def test_lengths_of_a_goal() -> None:
    assert make_goal((ByteTarget(9, 8192), ByteTarget(5, 1024)), None, False).lengths == (1024, 8192)
    assert make_goal((), 0.1, False).lengths == (8192,)

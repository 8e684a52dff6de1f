"""What a relay gives on and what it remembers, wherever the network cuts the bytes."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from kvfold.runtime.cluster.resumable_stream import ResumableStream
from kvfold.runtime.server.relayed import Note, Relayed
from kvfold.runtime.server.streaming import KEEP_ALIVE

RELAYED = Relayed(id="ab", created=1, seed=2)
# A text that looks like a note is inside a line.
PIECES = [
    (b'data: {"role": 1}\n\n', Note(prompt=(1, 2))),
    (b'data: {"text": ": kvfold {}"}\n\n', Note(ids=(5,))),
    (b"event: x\ndata: 1\n\ndata: 2\n\n", Note(at=1, ids=(6, 7))),
    (b"data: 3\n\n", Note(ids=(8, 9), ended=True)),
    (b"", Note(ids=(4,))),
    (b"data: [DONE]\n\n", Note(end=True)),
]
SENT = b"".join(piece + note.event() + KEEP_ALIVE for piece, note in PIECES)
GIVEN = b"".join(piece + KEEP_ALIVE for piece, _ in PIECES)


@given(st.lists(st.integers(0, len(SENT)), max_size=12))
@settings(deadline=None)
def test_all_pieces_come_out_without_notes(cuts: list[int]) -> None:
    stream = ResumableStream(RELAYED)
    borders = [0, *sorted(cuts), len(SENT)]
    given_on = b"".join(stream.feed(SENT[a:b]) for a, b in pairwise(borders))
    assert given_on == GIVEN and stream.ended and not stream.failed
    assert stream.relayed.said == [[[5], [8, 9], [4]], [[6, 7]]] and stream.relayed.prompt == [1, 2]
    assert stream.relayed.ended == [0]


@given(st.integers(0, len(SENT)))
@settings(deadline=None)
def test_what_is_given_is_what_is_said_wherever_a_stream_breaks(cut: int) -> None:
    """So that the next replica goes on exactly there."""
    stream = ResumableStream(RELAYED)
    told = stream.feed(SENT[:cut])
    whole = [piece for piece, _ in PIECES if piece and piece in told]
    assert told.replace(KEEP_ALIVE, b"") == b"".join(whole)
    said = stream.relayed.said
    if not told:
        assert said is None
        return
    assert said is not None
    ids = [token for reply in said for piece in reply for token in piece]
    notes = [note for piece, note in PIECES if not piece or piece in told]
    assert sorted(ids) in (
        sorted(token for note in notes for token in note.ids),
        sorted(token for note in notes for token in note.ids if token != 4),
    )


def test_half_a_piece_is_dropped_when_another_replica_goes_on() -> None:
    stream = ResumableStream(RELAYED)
    assert stream.feed(b"data: a\n\n" + Note(ids=(1,)).event() + b"data: half") == b"data: a\n\n"
    stream.start_over()
    assert stream.feed(b"data: b\n\n" + Note(ids=(2,)).event()) == b"data: b\n\n"
    assert stream.relayed.said == [[[1], [2]]]


def test_a_replica_that_stops_is_not_told_to_the_client_but_other_errors_are() -> None:
    stream = ResumableStream(RELAYED)
    assert stream.feed(b"data: error\n\n" + Note(failed=503).event()) == b"" and stream.failed
    stream.start_over()
    assert stream.feed(b"data: error\n\n" + Note(failed=500).event()) == b"data: error\n\n" and stream.ended

"""What a relay in front of several servers says to one and hears from it, so that another can go on.

A relay is trusted by its header. It adds a field to a body, and gets a note, a comment of the stream, behind
each piece: whatever came before the note is told, the tokens in the note are said.
"""

from __future__ import annotations

import msgspec

from kvfold.runtime.loop.ticket import Said

RELAY_HEADER, RELAY_FIELD = "x-kvfold-relay", "kvfold_relay"
NOTE = b": kvfold "


class Relayed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The field of a body: what must be the same wherever the request runs.

    Attributes:
        id: of the response, hexadecimal.
        created: of the response, seconds since the epoch.
        seed: of sampling, where the request has none.
        said: what each reply has said elsewhere, in the pieces that were told; None: the stream begins.
        ended: numbers of replies whose end was told.
        prompt: what the prompt was read as there; None: it is read here.
    """

    id: str
    created: int
    seed: int
    said: list[list[list[int]]] | None = None
    ended: list[int] = []
    prompt: list[int] | None = None

    def said_by(self, first: int, count: int) -> tuple[Said, ...]:
        """What these replies have said."""
        replies = (self.said or [])[first : first + count]
        return tuple(tuple(map(tuple, pieces)) for pieces in replies)


class Note(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What stands behind a piece of a stream.

    Attributes:
        at: number of a reply.
        ids: tokens that the reply said with this piece.
        prompt: what the prompt was read as, where another server might read it differently.
        ended: the reply ends with this piece.
        end: nothing comes behind this piece.
        failed: the piece is an error of this status, and the stream ends.
    """

    at: int = 0
    ids: tuple[int, ...] = ()
    prompt: tuple[int, ...] | None = None
    ended: bool = False
    end: bool = False
    failed: int = 0

    def event(self) -> bytes:
        """As a comment of the stream."""
        return NOTE + _ENCODER.encode(self) + b"\n\n"


_ENCODER = msgspec.json.Encoder()

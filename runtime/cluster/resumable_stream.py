"""ResumableStream: a stream on its way through a relay, which remembers what it takes to go on elsewhere."""

from __future__ import annotations

from collections import defaultdict

import msgspec
from msgspec.structs import replace

from kvfold.runtime.server.relayed import NOTE, Note, Relayed
from kvfold.runtime.server.streaming import KEEP_ALIVE

# An error that is the replica's own: another one can go on.
UNAVAILABLE = 503


class ResumableStream:
    """Takes the bytes of replicas, gives those for the client: whole pieces, without notes.

    Attributes:
        begun: a piece was given.
        ended: all was given.
        failed: a replica said that it cannot go on.
    """

    def __init__(self, relayed: Relayed) -> None:
        """Of a request that was not sent yet."""
        self.begun = self.ended = self.failed = False
        self._relayed = relayed
        self._said: defaultdict[int, list[list[int]]] = defaultdict(list)
        self._ended: list[int] = []
        self._prompt: list[int] | None = None
        self._held = bytearray()

    @property
    def relayed(self) -> Relayed:
        """What the next replica is told."""
        if not self.begun:
            return self._relayed
        replies = max(self._said, default=0) + 1
        said = [self._said[at] for at in range(replies)]
        return replace(self._relayed, said=said, ended=self._ended, prompt=self._prompt)

    def start_over(self) -> None:
        """Another replica goes on: what came of a piece that has no end is dropped."""
        self._held.clear()
        self.failed = False

    def feed(self, data: bytes) -> bytes:
        """Take bytes as they come."""
        held = self._held
        held += data
        given = b""
        while not self.failed:
            if held.startswith(KEEP_ALIVE):
                given += KEEP_ALIVE
                del held[: len(KEEP_ALIVE)]
                continue
            at = 0 if held.startswith(NOTE) else held.find(b"\n" + NOTE) + 1
            end = held.find(b"\n\n", at)
            if end < 0 or not (at or held.startswith(NOTE)):
                break
            given += self._piece(bytes(held[:at]), _DECODER.decode(held[at + len(NOTE) : end]))
            del held[: end + 2]
        return given

    def _piece(self, piece: bytes, note: Note) -> bytes:
        if note.failed == UNAVAILABLE:
            self.failed = True
            return b""
        if note.prompt is not None:
            self._prompt = list(note.prompt)
        if note.ids:
            self._said[note.at].append(list(note.ids))
        if note.ended:
            self._ended.append(note.at)
        self.begun |= bool(piece)
        self.ended = note.end or bool(note.failed)
        return piece


_DECODER = msgspec.json.Decoder(Note)

"""A parser for a server that speaks one protocol: a request that offers another has its body all the same."""

from __future__ import annotations

from typing import Any

from httptools import HttpParserUpgrade, HttpRequestParser

FRAMING = (b"content-length", b"transfer-encoding")


class PlainParser:
    """httptools' parser, which takes what follows an offer to upgrade for the other protocol.

    Java's client offers h2c with every request: its bodies would be lost. So a parser that has found an offer
    is replaced by one that reads on behind the same head, without the offer.
    """

    def __init__(self, protocol: Any) -> None:
        """For a uvicorn protocol; it leaves the end of a message alone while `should_upgrade` says so."""
        self._protocol = protocol
        self._parser = _parser(protocol)

    def feed_data(self, data: bytes) -> None:
        """Parse; raises HttpParserError."""
        rest = memoryview(data)
        while True:
            try:
                self._parser.feed_data(rest)
            except HttpParserUpgrade as offer:
                rest = rest[offer.args[0] :]
                self._read_on()
            else:
                return

    def _read_on(self) -> None:
        lines = [b"%s: %s\r\n" % header for header in self._protocol.headers if header[0] in FRAMING]
        self._parser = _parser(_BehindHead(self._protocol))
        self._parser.feed_data(b"POST / HTTP/1.1\r\n%s\r\n" % b"".join(lines))

    def get_http_version(self) -> str:
        """Of the request at hand."""
        return self._parser.get_http_version()

    def get_method(self) -> bytes:
        """Of the request at hand."""
        return self._parser.get_method()

    def should_keep_alive(self) -> bool:
        """Whether the request at hand keeps its connection."""
        return self._parser.should_keep_alive()

    def should_upgrade(self) -> bool:
        """Whether the request at hand offers to, and its body is still to be read."""
        return self._parser.should_upgrade()


class _BehindHead:
    """Callbacks that pass on everything but the first head, which was told before."""

    def __init__(self, protocol: Any) -> None:
        self._protocol = protocol
        self._told = False
        self.on_body = protocol.on_body
        self.on_message_complete = protocol.on_message_complete

    def on_message_begin(self) -> None:
        if self._told:
            self._protocol.on_message_begin()

    def on_url(self, url: bytes) -> None:
        if self._told:
            self._protocol.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._told:
            self._protocol.on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._told:
            self._protocol.on_headers_complete()
        self._told = True


def _parser(callbacks: Any) -> HttpRequestParser:
    parser = HttpRequestParser(callbacks)
    # An answer to the last request of a connection is wanted even where its client sent more behind it.
    parser.set_dangerous_leniencies(lenient_data_after_close=True)
    return parser

"""Parses the heads of HTTP/1.1 responses (RFC 9112)."""

import re
from enum import Enum, auto
from functools import lru_cache

import httptools

from .._headers import RawHeaders

MAX_HEADERS = 128

_TOKEN = rb"[-!#$%&'*+.^_`|~0-9a-zA-Z]"
_STATUS_LINE = re.compile(rb"(HTTP/[0-9]\.[0-9]) ([1-9][0-9]{2})(?: ([^\0\r\n\x0b\x0c]*))?\r?\n")
_FIELD_LINE = re.compile(rb"^(%b+):[ \t]*+([^\0-\x08\n-\x1f\x7f]*+)\r\n" % _TOKEN, re.MULTILINE)
_FOLD = re.compile(rb"\r?\n[ \t]+")
_BARE_LF = re.compile(rb"(?<!\r)\n")
_FRAMING_NAME_LENGTHS = frozenset(map(len, ("connection", "content-length", "transfer-encoding")))


class ReadState(Enum):
    """What is to come on a connection: nothing, a head, a body, or somebody else's bytes."""

    IDLE = auto()
    HEAD = auto()
    LENGTH = auto()
    CHUNKED = auto()
    UNTIL_CLOSE = auto()
    UPGRADED = auto()
    DONE = auto()


class ParseError(Exception):
    """What the upstream sent is not HTTP."""


class ResponseHead:
    """Status and fields of a response (RFC 9112 4 and 5), and how its body ends (6.3)."""

    __slots__ = ("fields", "keep_alive", "length", "phase", "reason", "status", "version")

    def __init__(self, data: bytes) -> None:
        line = _STATUS_LINE.match(data)
        if line is None:
            raise ParseError("malformed status line")
        self.version: bytes = line[1]
        self.status: int = int(line[2])
        self.reason: bytes = line[3] or b""
        self.fields: RawHeaders = _FIELD_LINE.findall(data)
        # Every line is a field as most are, or httptools says what the odd ones are.
        if len(self.fields) + 2 != data.count(b"\n") or b" \r" in data or b"\t\r" in data:
            self._parse(data[line.end() :])
        if len(self.fields) > MAX_HEADERS:
            raise ParseError("too many fields")
        self.phase: ReadState = ReadState.UNTIL_CLOSE
        self.length: int = 0  # of the body, where the phase is LENGTH
        self.keep_alive: bool = (
            self.version == b"HTTP/1.1"
        )  # the connection, where the body has an end
        self._set_framing()

    def _parse(self, lines: bytes) -> None:
        if lines[:1] in b" \t":
            raise ParseError("whitespace before the first header")
        lines = _FOLD.sub(b" ", lines)  # RFC 9112 5.2
        lines = _BARE_LF.sub(b"\r\n", lines)  # RFC 9112 2.2
        if lines.count(b"\r") != lines.count(b"\r\n"):
            raise ParseError("a bare CR")
        self.fields = []
        for line in lines.split(b"\r\n")[:-2]:
            if field := _FIELD_LINE.match(line + b"\r\n"):
                self.on_header(*field.groups())
                continue
            try:  # alone, for what is said of framing is judged in `_frame`
                parser = httptools.HttpResponseParser(self)
                parser.feed_data(b"HTTP/1.1 200 OK\r\n" + line + b"\r\n\r\n")
            except httptools.HttpParserUpgrade:
                pass
            except httptools.HttpParserError as exc:
                raise ParseError(str(exc)) from exc

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value.strip(b" \t")))

    def _set_framing(self) -> None:
        length = codings = b""
        repeated = False
        for name, value in self.fields:
            if len(name) in _FRAMING_NAME_LENGTHS:  # which most are not
                key = name.lower()
                if key == b"content-length":
                    repeated = repeated or bool(length) or b"," in value
                    length = length + b"," + value if length else value or b"-"
                elif key == b"transfer-encoding":
                    codings = codings + b"," + value if codings else value or b"-"
                elif key == b"connection" and value != b"keep-alive":
                    closes = b"close" in map(bytes.strip, value.lower().split(b","))
                    self.keep_alive = self.keep_alive and not closes
        if codings and (length or codings.lower() != b"chunked"):
            raise ParseError(
                "unsupported Transfer-Encoding, or both Transfer-Encoding and Content-Length"
            )
        if repeated:
            length = self._merge_lengths(length)
        if length and not (length.isdigit() and len(length) < 20):
            raise ParseError("bad Content-Length")
        if self.status == 101:
            self.phase = ReadState.UPGRADED
        elif self.status in (204, 304):
            self.phase = ReadState.LENGTH
        elif codings:
            self.phase = ReadState.CHUNKED
        elif length:
            self.phase, self.length = ReadState.LENGTH, int(length)

    def _merge_lengths(self, lengths: bytes) -> bytes:
        """One Content-Length in place of several that say the same (RFC 9110 8.6)."""
        values = {value.strip(b" \t") for value in lengths.split(b",")}
        if len(values) > 1:
            raise ParseError("conflicting Content-Length")
        length = values.pop()
        names = [name.lower() for name, _ in self.fields]
        at = names.index(b"content-length")
        self.fields[at] = (self.fields[at][0], length)
        later = zip(names[at + 1 :], self.fields[at + 1 :], strict=True)
        self.fields[at + 1 :] = [field for name, field in later if name != b"content-length"]
        return length


_usual_head = lru_cache(64)(ResponseHead)


def parse_head(data: bytes) -> ResponseHead:
    """The head in these bytes, which is not to be changed.

    Under load an upstream sends the same heads again and again, as long as its Date is the same.

    Raises:
        Broken: it is no HTTP/1.1 head.
    """
    return _usual_head(data) if len(data) < 1024 else ResponseHead(data)

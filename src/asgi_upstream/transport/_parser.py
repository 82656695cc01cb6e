"""Parses HTTP/1.1 responses without I/O (RFC 9112)."""

import re
from typing import cast

from ._chunked import ChunkedDecoder
from ._header_lines import ParseError
from ._response_head import (
    CHUNKED,
    DONE,
    HEAD,
    IDLE,
    LENGTH,
    MAX_HEAD_SIZE,
    ReadState,
    ResponseHead,
    parse_head,
)
from ._serializer import OutgoingRequest

_END_OF_HEAD = re.compile(rb"\n\r?\n")


_NO_REQUEST = cast(OutgoingRequest, None)


class ResponseParser:
    """Parses the responses of one connection, one after the other.

    Attributes:
        state: The part of the response that comes next.
        head: The head of the response, valid if `state` is past HEAD.
        keep_alive: Whether the connection may be used again after this response.
    """

    __slots__ = (
        "_chunked",
        "_head_data",
        "_interim_size",
        "_remaining",
        "_request",
        "head",
        "keep_alive",
        "state",
    )

    def __init__(self) -> None:
        self.state: ReadState = IDLE
        self.head: ResponseHead = cast(ResponseHead, None)
        self.keep_alive: bool = False
        self._request = _NO_REQUEST
        self._head_data = b""  # an incomplete head
        self._interim_size = 0  # bytes of interim responses
        self._remaining = 0  # bytes to come of a body with a length
        self._chunked = cast(ChunkedDecoder, None)

    @property
    def expects_data(self) -> bool:
        """Whether the upstream may send bytes now."""
        return self.state not in (IDLE, DONE)

    @property
    def has_more(self) -> bool:
        """Whether `feed` stopped early and must be called again, with or without data."""
        return self.state is CHUNKED and self._chunked.has_more

    def start(self, request: OutgoingRequest) -> None:
        """Expect the response to `request`."""
        self.state, self._request = HEAD, request
        self._head_data, self._interim_size = b"", 0

    def feed(self, data: bytes) -> bytes:
        """Return the body bytes in `data`.

        Raises:
            ParseError: If the response is malformed.
        """
        if self.state is HEAD:
            rest = self._feed_head(self._head_data + data if self._head_data else data)
            if rest is None:
                return b""
            data = rest
        if self.state is LENGTH:
            return self._feed_fixed_length(data)
        if self.state is CHUNKED:
            return self._feed_chunked(data)
        return data

    def feed_eof(self, *, truncated: bool = False) -> bool:
        """Return whether the response may end here, and end it if so.

        Arguments:
            truncated: Whether TLS did not confirm the end, so that bytes may be missing
                (RFC 9112 9.8).
        """
        if self.state is ReadState.UPGRADED or (
            self.state is ReadState.UNTIL_CLOSE and not truncated
        ):
            self.state, self.keep_alive = DONE, False
        return self.state in (IDLE, DONE)

    def _feed_head(self, data: bytes) -> bytes | None:
        """Return the bytes after the head. None if the head is incomplete."""
        while True:
            end = _END_OF_HEAD.search(data)
            if self._interim_size + (end.end() if end else len(data)) > MAX_HEAD_SIZE:
                raise ParseError("response head exceeds 64 KiB")
            if end is None:
                if not b"HTTP/".startswith(data[:5]):
                    raise ParseError("not HTTP")
                self._head_data = data
                return None
            if self._request.method == "CONNECT":
                head = ResponseHead(data[: end.end()], to_connect=True)
            else:
                head = parse_head(data[: end.end()])
            data = data[end.end() :]
            if head.status == 101 and b"\r\nupgrade:" not in self._request.head.lower():
                raise ParseError("unexpected 101 Switching Protocols")
            if head.status >= 200 or head.status == 101:
                break
            self._interim_size += end.end()  # an interim response (RFC 9110 15.2)
        self._start_body(head)
        return data

    def _start_body(self, head: ResponseHead) -> None:
        self.head, self.state, self._remaining = head, head.framing, head.length
        self.keep_alive = head.keep_alive and not self._request.connection_close
        if self._request.method == "HEAD" and head.status != 101:
            self.state, self._remaining = LENGTH, 0
        elif self.state is CHUNKED:
            self._chunked = ChunkedDecoder()
        # An open stream would keep them.
        self._head_data, self._request = b"", _NO_REQUEST

    def _feed_fixed_length(self, data: bytes) -> bytes:
        if len(data) > self._remaining:
            self.keep_alive = False  # unexpected bytes must not become the next response
            data = data[: self._remaining]
        self._remaining -= len(data)
        if not self._remaining:
            self.state = DONE
        return data

    def _feed_chunked(self, data: bytes) -> bytes:
        body = self._chunked.feed(data)
        if self._chunked.done:
            self.state = DONE
            self.keep_alive = self.keep_alive and not self._chunked.excess
        return body

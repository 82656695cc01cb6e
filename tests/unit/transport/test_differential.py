"""Whatever an upstream sends, AsyncioTransport makes of it what the stock transport does.

Both are driven below the socket: a network in memory gives them the same bytes, cut into the same
pieces. Where they are to differ, a test of its own says so.
"""

import asyncio
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpcore
import httpx
import pytest
from hypothesis import HealthCheck, event, given, note, settings
from hypothesis import strategies as st

from asgi_upstream.transport import AsyncioTransport
from asgi_upstream.transport._connection import ConnectionOwner, HTTP11Connection
from asgi_upstream.transport._pool_state import Origin
from asgi_upstream.transport._response_head import MAX_HEAD_SIZE, MAX_HEADERS, ReadState
from tests.support.examples import count_examples

_TLS = httpx.create_ssl_context(verify=False)  # made once, for it takes long


@dataclass
class Sent:
    """What the upstream sends, piece by piece, and whether it ends the connection then."""

    pieces: Sequence[bytes]
    ends: bool = True


@dataclass
class Outcome:
    """What a caller sees of an exchange, and whether its connection was kept."""

    status: int | None = None
    version: bytes = b""
    reason: bytes = b""
    fields: list[tuple[bytes, bytes]] = field(default_factory=list[tuple[bytes, bytes]])
    body: bytes = b""
    error: type[Exception] | None = None
    kept: bool = False


class Wire(asyncio.Transport):
    """Below AsyncioTransport: sends when it is written to."""

    def __init__(self, connection: HTTP11Connection, sent: Sent) -> None:
        super().__init__()
        self._connection = connection
        self._pieces = list(sent.pieces)
        self._ends = sent.ends
        self._loop = asyncio.get_running_loop()
        self._begun = self._paused = self._closed = False

    def write(self, data: Any) -> None:
        if not self._begun:
            self._begun = True
            self._loop.call_soon(self._next)

    def _next(self) -> None:
        if self._paused or self._closed:
            return
        if self._pieces:
            self._connection.data_received(self._pieces.pop(0))
            self._loop.call_soon(self._next)
        elif self._ends:
            self._connection.eof_received()
            self.abort()
        else:
            reader = self._connection._timeouts.reader
            if reader is not None and not reader.done():
                reader.set_exception(httpx.ReadTimeout(""))  # without the time that takes
            if self._connection._parser.state is not ReadState.IDLE:
                self._loop.call_soon(self._next)

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False
        self._loop.call_soon(self._next)

    def abort(self) -> None:
        if not self._closed:
            self._closed = True
            self._loop.call_soon(self._connection.connection_lost, None)


class Fast(AsyncioTransport):
    def __init__(self, sent: Sent) -> None:
        super().__init__(verify=_TLS)
        self._sent = sent
        self._connector.open = self._open  # type: ignore[method-assign]

    async def _open(self, origin: Origin, owner: ConnectionOwner) -> HTTP11Connection:
        connection = HTTP11Connection(owner, asyncio.get_running_loop(), httpx)
        connection.connection_made(Wire(connection, self._sent))
        return connection


class Stream(httpcore.AsyncNetworkStream):
    """Below the stock transport."""

    def __init__(self, sent: Sent) -> None:
        self._pieces = list(sent.pieces)
        self._ends = sent.ends
        self._closed = False

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        await asyncio.sleep(0)
        if self._closed:
            raise httpcore.ReadError
        if self._pieces:
            piece = self._pieces.pop(0)
            if len(piece) > max_bytes:
                self._pieces.insert(0, piece[max_bytes:])
            return piece[:max_bytes]
        if self._ends:
            return b""
        raise httpcore.ReadTimeout

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        pass

    async def aclose(self) -> None:
        self._closed = True

    def get_extra_info(self, info: str) -> Any:
        # As a socket's: at an end, or with bytes left to read.
        return (self._ends or bool(self._pieces)) if info == "is_readable" else None


class Backend(httpcore.AsyncNetworkBackend):
    def __init__(self, sent: Sent) -> None:
        self._sent = sent

    async def connect_tcp(self, *args: Any, **options: Any) -> httpcore.AsyncNetworkStream:
        return Stream(self._sent)


def fast(sent: Sent) -> AsyncioTransport:
    return Fast(sent)


def stock(sent: Sent) -> httpx.AsyncHTTPTransport:
    transport = httpx.AsyncHTTPTransport(verify=_TLS)
    transport._pool = httpcore.AsyncConnectionPool(
        ssl_context=_TLS, network_backend=Backend(sent), keepalive_expiry=60
    )
    return transport


async def exchange(
    transport: httpx.AsyncHTTPTransport, method: str, sent: Sent, *, upgrade: bool = True
) -> Outcome:
    outcome = Outcome()
    fields = {"connection": "upgrade", "upgrade": "x"} if upgrade else {}
    request = httpx.Request(method, "http://upstream.example/", headers=fields)
    try:
        response = await transport.handle_async_request(request)
        outcome.status = response.status_code
        outcome.version = response.extensions["http_version"]
        outcome.reason = response.extensions["reason_phrase"]
        outcome.fields = response.headers.raw
        assert isinstance(response.stream, httpx.AsyncByteStream)
        try:
            async for piece in response.stream:
                outcome.body += piece
        finally:
            await response.aclose()
    except httpx.TransportError as exc:
        outcome.error = type(exc)
    for _ in range(len(sent.pieces) + 5):
        await asyncio.sleep(0)  # for what else is sent
    if isinstance(transport, AsyncioTransport):
        outcome.kept = transport.pool_state().idle > 0
    else:
        pool = transport._pool
        assert isinstance(pool, httpcore.AsyncConnectionPool)
        outcome.kept = any(one.is_idle() and not one.has_expired() for one in pool.connections)
    await transport.aclose()
    return outcome


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


def both(runner: asyncio.Runner, sent: Sent, method: str = "GET") -> tuple[Outcome, Outcome]:
    ours = runner.run(exchange(fast(sent), method, sent))
    theirs = runner.run(exchange(stock(sent), method, sent))
    return ours, theirs


def agree(ours: Outcome, theirs: Outcome) -> None:
    if theirs.error is httpx.ReadTimeout and ours.error is httpx.RemoteProtocolError:
        # It was known to be broken before its end had come.
        theirs.error = ours.error
    if ours.error is not None:
        # How much of a body comes before an error is a matter of how it is parsed.
        assert theirs.body.startswith(ours.body) or ours.body.startswith(theirs.body)
        theirs.body = ours.body
    # The stock transport rewrites the name of the coding.
    assert [
        (name, value.lower() if name.lower() == b"transfer-encoding" else value)
        for name, value in ours.fields
    ] == theirs.fields
    ours.fields = theirs.fields
    # A connection that might be kept may be closed.
    theirs.kept = theirs.kept and ours.kept
    assert ours == theirs


def refused(ours: Outcome) -> bool:
    return ours.error is httpx.RemoteProtocolError and not ours.kept


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"
EMPTY = b"content-length: 0\r\n\r\n"

BROKEN = httpx.RemoteProtocolError

# What both transports make of it: the status, and the body or an error.
AGREED: dict[str, tuple[bytes, int | None, bytes | type[Exception]]] = {
    "a length": (OK + b"content-length: 5\r\n\r\nhello", 200, b"hello"),
    "chunks": (CHUNKED + b"5\r\nhello\r\n0\r\n\r\n", 200, b"hello"),
    "until the end": (OK + b"\r\nhello", 200, b"hello"),
    "two equal lengths": (
        OK + b"Content-Length: 2\r\nx: y\r\ncontent-length: 2\r\n\r\nok",
        200,
        b"ok",
    ),
    "a list of equal lengths": (OK + b"content-length: 2, 2\r\n\r\nok", 200, b"ok"),
    "conflicting lengths": (OK + b"content-length: 2\r\ncontent-length: 3\r\n\r\nok", None, BROKEN),
    "a list of conflicting lengths": (OK + b"content-length: 2, 3\r\n\r\nok", None, BROKEN),
    "a list that ends in a comma": (OK + b"content-length: 2,\r\n\r\nok", None, BROKEN),
    "a length with a sign": (OK + b"content-length: +5\r\n\r\nhello", None, BROKEN),
    "a negative length": (OK + b"content-length: -5\r\n\r\nhello", None, BROKEN),
    "an empty length": (OK + b"content-length:\r\n\r\n", None, BROKEN),
    "a hexadecimal length": (OK + b"content-length: 0x5\r\n\r\n", None, BROKEN),
    "digits that are not ASCII": (OK + "content-length: \u0665\r\n\r\n".encode(), None, BROKEN),
    "a body that is too short": (OK + b"content-length: 5\r\n\r\nhell", 200, BROKEN),
    "chunks without an end": (CHUNKED + b"5\r\nhello\r\n", 200, BROKEN),
    "another coding": (OK + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", None, BROKEN),
    "a coding twice": (
        OK + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        None,
        BROKEN,
    ),
    "no coding": (OK + b"transfer-encoding:\r\n\r\n0\r\n\r\n", None, BROKEN),
    "a coding and a vertical tab": (
        OK + b"transfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
        None,
        BROKEN,
    ),
    "a coding in capitals, and blanks": (
        OK + b"Transfer-Encoding: \tCHUNKED \t\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        200,
        b"ok",
    ),
    "a coding in HTTP/1.0": (
        b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        200,
        b"ok",
    ),
    "extensions and trailers": (
        CHUNKED + b'2;a=b;c="d"\r\nok\r\n0;x\r\na: b\r\nc: d\r\n e\r\n\r\n',
        200,
        b"ok",
    ),
    "a malformed trailer": (CHUNKED + b"0\r\na b\r\n\r\n", 200, BROKEN),
    "a malformed chunk": (CHUNKED + b"2\r\nokk\r\n0\r\n\r\n", 200, BROKEN),
    "a chunk line that ends in LF": (CHUNKED + b"2\nok\r\n0\r\n\r\n", 200, BROKEN),
    "a chunk size with a prefix": (CHUNKED + b"0x2\r\nok\r\n0\r\n\r\n", 200, BROKEN),
    "a negative chunk size": (CHUNKED + b"-2\r\nok\r\n0\r\n\r\n", 200, BROKEN),
    "blanks behind a chunk size": (CHUNKED + b"2 \t\r\nok\r\n0 \r\n\r\n", 200, b"ok"),
    "NUL in a value": (OK + b"x: a\0b\r\n" + EMPTY, None, BROKEN),
    "NUL in a name": (OK + b"x\0: a\r\n" + EMPTY, None, BROKEN),
    "NUL in the reason": (b"HTTP/1.1 200 O\0K\r\n" + EMPTY, None, BROKEN),
    "a bare CR in a value": (OK + b"x: a\rb\r\n" + EMPTY, None, BROKEN),
    "a bare CR before the line's end": (OK + b"x: a\r\r\n" + EMPTY, None, BROKEN),
    "a bare CR in the reason": (b"HTTP/1.1 200 O\rK\r\n" + EMPTY, None, BROKEN),
    "a bare CR for a line's end": (OK + b"x: a\ry: b\r\n" + EMPTY, None, BROKEN),
    "bare LFs": (b"HTTP/1.1 200 OK\nx: y\ncontent-length: 2\n\nok", 200, b"ok"),
    "some bare LFs": (OK + b"x: y\ncontent-length: 2\r\n\nok", 200, b"ok"),
    "a folded line": (OK + b"x: a\r\n \t b\r\n\tc\r\ncontent-length: 2\r\n\r\nok", 200, b"ok"),
    "a folded length": (OK + b"content-length:\r\n 2\r\n\r\nok", 200, b"ok"),
    "a folded status line": (OK + b" x: a\r\n" + EMPTY, None, BROKEN),
    "blanks around values": (OK + b"x: \ta b \t \r\ny:\r\nz: \t\r\n" + EMPTY, 200, b""),
    "bytes that are not ASCII": (b"HTTP/1.1 200 O\xe9K\r\nx: \xff\x80\r\n" + EMPTY, 200, b""),
    "a blank before the colon": (OK + b"x : a\r\n" + EMPTY, None, BROKEN),
    "no colon": (OK + b"x\r\n" + EMPTY, None, BROKEN),
    "no name": (OK + b": x\r\n" + EMPTY, None, BROKEN),
    "no reason": (b"HTTP/1.1 200\r\n" + EMPTY, 200, b""),
    "an empty reason": (b"HTTP/1.1 200 \r\n" + EMPTY, 200, b""),
    "a tab for a blank": (b"HTTP/1.1\t200 OK\r\n" + EMPTY, None, BROKEN),
    "a status of two digits": (b"HTTP/1.1 20 OK\r\n" + EMPTY, None, BROKEN),
    "a status of four digits": (b"HTTP/1.1 2000 OK\r\n" + EMPTY, None, BROKEN),
    "a status below 100": (b"HTTP/1.1 099 OK\r\n" + EMPTY, None, BROKEN),
    "a status that nobody knows": (b"HTTP/1.1 999 OK\r\n" + EMPTY, 999, b""),
    "interim responses": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nlink: x\r\n\r\n" + OK + EMPTY,
        200,
        b"",
    ),
    "an interim response with a length": (
        b"HTTP/1.1 102 Wait\r\ncontent-length: 5\r\n\r\n" + OK + EMPTY,
        200,
        b"",
    ),
    "an interim response and no other": (b"HTTP/1.1 100 Continue\r\n\r\n", None, BROKEN),
    "204 and a length": (b"HTTP/1.1 204 No\r\ncontent-length: 5\r\n\r\n", 204, b""),
    "204 and a body": (b"HTTP/1.1 204 No\r\ncontent-length: 5\r\n\r\nhello", 204, b""),
    "204 and chunks": (b"HTTP/1.1 204 No\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 204, b""),
    "304 and a length": (b"HTTP/1.1 304 Same\r\ncontent-length: 5\r\n\r\n", 304, b""),
    "304 and a body": (b"HTTP/1.1 304 Same\r\n\r\nhello", 304, b""),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\n\r\nhello", 200, b"hello"),
    "HTTP/1.0 with keep-alive": (
        b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nok",
        200,
        b"ok",
    ),
    "HTTP/0.9": (b"<html>hello</html>\r\n\r\n", None, BROKEN),
    "a version of two digits": (b"HTTP/1.10 200 OK\r\n" + EMPTY, None, BROKEN),
    "small letters": (b"http/1.1 200 OK\r\n" + EMPTY, None, BROKEN),
    "a blank line first": (b"\r\n" + OK + EMPTY, None, BROKEN),
    "the end of a connection": (OK + b"connection: x, Close\r\n" + EMPTY, 200, b""),
    "an end in the head": (OK + b"content-length: 0\r\n", None, BROKEN),
    "nothing": (b"", None, BROKEN),
    "101": (b"HTTP/1.1 101 Switch\r\nconnection: upgrade\r\nupgrade: x\r\n\r\nhello", 101, b""),
    "101 and a length": (
        b"HTTP/1.1 101 Switch\r\nupgrade: x\r\ncontent-length: 2\r\n\r\nhello",
        101,
        b"",
    ),
    "an upgrade that is none": (
        OK + b"connection: upgrade\r\nupgrade: x\r\ncontent-length: 2\r\n\r\nok",
        200,
        b"ok",
    ),
}


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("cut", ["whole", "in bytes"])
@pytest.mark.parametrize("name", AGREED)
def test_both_make_the_same_of(runner: asyncio.Runner, name: str, cut: str, method: str) -> None:
    raw, status, result = AGREED[name]
    pieces = [raw] if cut == "whole" else [raw[at : at + 1] for at in range(len(raw))]
    for ends in (True, False):
        ours, theirs = both(runner, Sent([piece for piece in pieces if piece], ends), method)
        agree(ours, theirs)
        if ends:
            assert ours.status == status
            if method == "GET" or status is None:
                assert (ours.error or ours.body) == result
            else:
                assert (ours.error, ours.body) == (None, b"")


# On purpose.


@pytest.mark.parametrize("status", [b"200", b"204", b"304", b"100"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_both_framings_are_refused_unlike_httpxs_transport(
    runner: asyncio.Runner, method: str, status: bytes
) -> None:
    """RFC 9112 6.3 (3): that is an attempt to smuggle, and ought to be an error."""
    raw = b"HTTP/1.1 %b X\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n" % status
    raw += b"2\r\nok\r\n0\r\n\r\n" if status != b"100" else OK + EMPTY
    ours, theirs = both(runner, Sent([raw]), method)
    assert refused(ours)
    assert theirs.error is None


@pytest.mark.parametrize("byte", [b"\x01", b"\x08", b"\x0e", b"\x1b", b"\x1f", b"\x7f"])
def test_control_byte_in_a_value_is_refused_unlike_httpx(
    runner: asyncio.Runner, byte: bytes
) -> None:
    """RFC 9110 5.5: they are invalid."""
    raw = OK + b"x: a" + byte + b"b\r\n" + EMPTY
    ours, theirs = both(runner, Sent([raw]))
    assert refused(ours)
    assert theirs.fields[0] == (b"x", b"a" + byte + b"b")


def test_a_head_of_more_than_64_kib_is_refused(runner: asyncio.Runner) -> None:
    def head(size: int) -> bytes:
        rest = len(OK + b"x: \r\n" + EMPTY)
        return OK + b"x: " + b"y" * (size - rest) + b"\r\n" + EMPTY

    assert len(head(MAX_HEAD_SIZE)) == MAX_HEAD_SIZE
    agree(*both(runner, Sent([head(MAX_HEAD_SIZE)])))
    ours, theirs = both(runner, Sent([head(MAX_HEAD_SIZE + 1)]))
    assert refused(ours)
    assert theirs.status == 200
    ours, _ = both(runner, Sent([b"HTTP/1.1 200 OK\r\nx:", *[b"y" * 1000] * 100], ends=False))
    assert refused(ours)  # before its end


def test_more_than_128_fields_are_refused(runner: asyncio.Runner) -> None:
    most = OK + b"x: y\r\n" * (MAX_HEADERS - 1)
    agree(*both(runner, Sent([most + EMPTY])))
    ours, theirs = both(runner, Sent([most + b"x: y\r\n" + EMPTY]))
    assert refused(ours)
    assert theirs.status == 200


@pytest.mark.parametrize(
    ("raw", "method"),
    [
        (OK + b"content-length: 2\r\n\r\nok", "GET"),
        (CHUNKED + b"2\r\nok\r\n0\r\n\r\n", "GET"),
        (OK + b"content-length: 2\r\n\r\n", "HEAD"),
        (b"HTTP/1.1 204 No\r\n\r\n", "GET"),
        (b"HTTP/1.1 304 Same\r\ncontent-length: 2\r\n\r\n", "GET"),
    ],
    ids=["length", "chunks", "HEAD", "204", "304"],
)
@pytest.mark.parametrize("cut", ["at once", "later"])
def test_bytes_after_a_body_close_the_connection_unlike_httpcore(
    runner: asyncio.Runner, raw: bytes, method: str, cut: str
) -> None:
    """httpcore takes them for the next response."""
    ours, theirs = both(runner, Sent([raw], ends=False), method)
    assert ours.kept  # without any
    assert ours == theirs
    smuggled = b"HTTP/1.1 200 Smuggled\r\n" + EMPTY
    pieces = [raw + smuggled] if cut == "at once" else [raw, smuggled]
    ours, theirs = both(runner, Sent(pieces, ends=False), method)
    assert not ours.kept
    assert theirs.kept == (cut == "at once")
    theirs.kept = False
    assert ours == theirs


@pytest.mark.parametrize("version", [b"0.9", b"1.2", b"1.9", b"2.0", b"5.6", b"9.9"])
def test_other_http_versions_are_refused(runner: asyncio.Runner, version: bytes) -> None:
    ours, _ = both(runner, Sent([b"HTTP/%b 200 OK\r\n" % version + EMPTY], ends=False))
    assert refused(ours)


@pytest.mark.parametrize(
    "raw",
    [
        CHUNKED + b"2;a\rb\r\nok\r\n0\r\n\r\n",
        CHUNKED + b"2;\r\r\nok\r\n0\r\n\r\n",
        CHUNKED + b"2;\0\r\nok\r\n0\r\n\r\n",
    ],
)
def test_a_bare_cr_or_nul_in_a_chunk_extension_is_refused(
    runner: asyncio.Runner, raw: bytes
) -> None:
    """RFC 9112 2.2: others may end the line there, and so see other chunks."""
    ours, theirs = both(runner, Sent([raw]))
    assert refused(ours)
    assert theirs.body == b"ok"


def test_a_chunk_size_of_more_than_64_bits_is_refused(runner: asyncio.Runner) -> None:
    agree(*both(runner, Sent([CHUNKED + b"%016x\r\nok\r\n0\r\n\r\n" % 2])))
    ours, theirs = both(runner, Sent([CHUNKED + b"%017x\r\nok\r\n0\r\n\r\n" % 2]))
    assert refused(ours)
    assert theirs.body == b"ok"


def test_a_length_of_more_than_64_bits_is_refused(runner: asyncio.Runner) -> None:
    agree(*both(runner, Sent([OK + b"content-length: %019d\r\n\r\nok" % 2])))
    ours, theirs = both(runner, Sent([OK + b"content-length: %020d\r\n\r\nok" % 2]))
    assert refused(ours)
    assert theirs.body == b"ok"


@pytest.mark.parametrize("trailer", [b"content-length: x", b"transfer-encoding: gzip"])
def test_a_trailer_says_nothing_of_the_framing(runner: asyncio.Runner, trailer: bytes) -> None:
    """RFC 9110 6.5.1: such trailers are to be ignored. The stock transport breaks on them."""
    ours, theirs = both(runner, Sent([CHUNKED + b"2\r\nok\r\n0\r\n" + trailer + b"\r\n\r\n"]))
    assert (ours.body, ours.error) == (b"ok", None)
    assert theirs.error is httpx.RemoteProtocolError


def test_unrequested_protocol_switch_is_refused_by_both(
    runner: asyncio.Runner,
) -> None:
    sent = Sent([b"HTTP/1.1 101 Switch\r\nconnection: upgrade\r\nupgrade: x\r\n\r\nhello"])
    ours = runner.run(exchange(fast(sent), "GET", sent, upgrade=False))
    theirs = runner.run(exchange(stock(sent), "GET", sent, upgrade=False))
    assert refused(ours)
    assert ours == theirs


# Whatever else an upstream sends.


def mostly(usual: bytes | list[bytes], *odd: bytes) -> st.SearchStrategy[bytes]:
    """One of the usual ones, or now and then an odd one."""
    usual = [usual] if isinstance(usual, bytes) else usual
    return st.integers(0, 60).flatmap(
        lambda number: st.sampled_from(list(odd) if number == 17 and odd else usual)
    )


def joined(*parts: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.tuples(*parts).map(b"".join)


LINE_END = mostly(b"\r\n", b"\n", b"\r", b"\r\r\n", b"\n\n")
STATUS_LINE = joined(
    mostly([b"HTTP/1.1"] * 4 + [b"HTTP/1.0"], b"HTTP/1.2", b"HTTP/2", b"http/1.1", b"HTTP/1.1 "),
    mostly(b" ", b"", b"\t", b"  "),
    mostly(
        [b"200", b"201", b"404", b"500", b"204", b"304"], b"099", b"600", b"20", b"2000", b"abc"
    ),
    mostly([b" OK", b"", b" ", b" \xe9 two "], b"\tOK", b" O\0K", b" O\rK", b"OK", b" \x0b"),
    LINE_END,
)
VALUE = mostly(
    [b"", b"y", b"two words", b"\xff\x80", b" \ty \t", b'"a, b"'],
    b"a\0b",
    b"a\rb",
    b"a\r\n folded",
    b"a\n\tfolded",
    b"\r\n  ",
)
FIELD = joined(
    mostly(
        [b"x", b"X-Name", b"set-cookie", b"!#$%&'*+-.^_`|~"],
        b"",
        b" x",
        b"x y",
        b"\xff",
        b"x\0",
        b"\tx",
    ),
    mostly([b":", b": "], b" :", b"", b"::"),
    VALUE,
    LINE_END,
)
CONNECTION = joined(
    st.sampled_from([b"connection: ", b"Connection:"]),
    st.sampled_from([b"close", b"keep-alive", b"x, CLOSE", b"upgrade", b"closed", b",", b""]),
    LINE_END,
)
BODY = st.sampled_from([b"", b"x", b"hello, world", b"\r\n\r\n", bytes(range(256)), b"z" * 70_000])
LENGTH_VALUE = mostly(b"", b" ", b"+", b"-", b"0x", b"0", b"1, ", b",")
CHUNK_SIZE_END = mostly(
    [b"\r\n", b";a=b\r\n", b";\r\n", b" \r\n"], b"\n", b" ;a\r\n", b"x\r\n", b"\r"
)
CODING = joined(
    mostly([b"transfer-encoding: ", b"Transfer-Encoding:"], b"transfer-encoding : "),
    mostly([b"chunked", b"Chunked", b"chunked \t"], b"gzip", b"gzip, chunked", b"chunked, x", b""),
    LINE_END,
)
TRAILERS = joined(
    st.lists(FIELD, max_size=2).map(b"".join),
    mostly(b"\r\n", b"", b"\n", b"\r", b"\0"),
)


@st.composite
def framed(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """Fields of a framing, and the body that they announce, or nearly."""
    body = draw(BODY)
    kind = draw(st.sampled_from(["length", "chunked", "close", "twice"]))
    if kind == "close":
        return b"", body
    if kind == "chunked":
        fields, data, at = draw(CODING), b"", 0
        while at < len(body):
            size = draw(st.integers(1, len(body)))
            piece = body[at : at + size]
            at += size
            line = b"%x" % len(piece) if draw(st.booleans()) else b"%03X" % len(piece)
            data += (
                line + draw(CHUNK_SIZE_END) + piece + draw(mostly(b"\r\n", b"\n", b"", b"x\r\n"))
            )
        return fields, data + draw(mostly([b"0", b"000"], b"", b"-0")) + draw(
            CHUNK_SIZE_END
        ) + draw(TRAILERS)
    length = b"%d" % len(body)
    fields = b"Content-Length: " + draw(LENGTH_VALUE) + length + draw(LINE_END)
    if kind == "twice":
        another = draw(mostly([length, length + b", " + length], b"%d" % (len(body) + 1)))
        fields += b"content-length:" + another + draw(LINE_END)
    return fields, body[: draw(st.sampled_from([len(body)] * 4 + [len(body) // 2]))]


INTERIM = joined(
    st.sampled_from([b"HTTP/1.1 100 Continue\r\n", b"HTTP/1.1 103\r\n", b"HTTP/1.0 199 x\r\n"]),
    st.lists(FIELD, max_size=2).map(b"".join),
    LINE_END,
)
CHANGE = st.tuples(
    st.integers(0, 400),
    st.integers(0, 2),
    st.sampled_from(
        [b"\r", b"\n", b" ", b"\t", b":", b",", b"0", b"9", b"a", b"\0", b"\xff", b"\r\n"]
    ),
)


@st.composite
def responses(draw: st.DrawFn) -> bytes:
    framing, body = draw(framed())
    fields = draw(st.lists(FIELD | CONNECTION, max_size=4))
    fields.insert(draw(st.integers(0, len(fields))), framing)
    raw = b"".join(draw(st.lists(INTERIM, max_size=2) if draw(st.booleans()) else st.just([])))
    raw += draw(STATUS_LINE) + b"".join(fields) + draw(LINE_END) + body
    if draw(st.integers(0, 3)) == 0:
        for place, removed, added in draw(st.lists(CHANGE, max_size=3)):
            raw = raw[:place] + added + raw[place + removed :]
    return raw + draw(
        mostly(b"", b"HTTP/1.1 200 Smuggled\r\ncontent-length: 0\r\n\r\n", b"\r\n", b"x")
    )


@st.composite
def sendings(draw: st.DrawFn) -> Sent:
    raw = draw(responses())
    cuts = draw(st.lists(st.integers(0, len(raw)), max_size=6).map(sorted))
    if draw(st.integers(0, 4)) == 0:  # its first bytes one by one
        cuts = [*range(min(len(raw), 300)), *(cut for cut in cuts if cut >= 300)]
    pieces = [raw[start:end] for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    return Sent([piece for piece in pieces if piece], draw(st.booleans()))


# What of it is refused on purpose, as above, or more strictly than by h11.
REFUSED = re.compile(
    rb"content-length.*transfer-encoding|transfer-encoding.*content-length"
    rb"|;[^\n]*(?:\0|\r(?!\n))"
    rb"|[0-9a-f]{17}"
    rb"|HTTP/(?!1\.[01] )",
    re.IGNORECASE | re.DOTALL,
)


@settings(
    max_examples=count_examples(100),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(sendings(), st.sampled_from(["GET"] * 5 + ["HEAD", "POST"]))
def test_both_transports_agree_on_any_bytes_in_any_pieces(
    runner: asyncio.Runner, sent: Sent, method: str
) -> None:
    ours, theirs = both(runner, sent, method)
    note(repr((b"".join(sent.pieces), ours, theirs)))
    event(f"{ours.error and ours.error.__name__} {ours.status is not None}")
    if not (refused(ours) and REFUSED.search(b"".join(sent.pieces))):
        agree(ours, theirs)

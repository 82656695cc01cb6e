"""Whatever an upstream sends, AsyncioTransport makes of it what the stock transport does.

Both are driven below the socket: a network in memory gives them the same bytes, cut into the same
pieces. Where they are to differ, a test of its own says so.
"""

import asyncio

import pytest

from asgi_upstream.transport._response_head import MAX_HEAD_SIZE, MAX_HEADERS
from tests.support.flavor import httpx
from tests.support.two_transports import (
    CHUNKED,
    EMPTY,
    OK,
    Sent,
    agree,
    both,
    exchange,
    fast,
    refused,
    stock,
)

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

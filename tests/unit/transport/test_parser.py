"""The response parser and the serializer, without an event loop."""

import pytest

from asgi_upstream.transport import _header_lines, _response_head, _serializer
from asgi_upstream.transport._chunked import MAX_CHUNKS_AT_ONCE, ChunkedDecoder
from asgi_upstream.transport._header_lines import ParseError
from asgi_upstream.transport._parser import ResponseParser
from asgi_upstream.transport._response_head import ReadState, parse_head
from asgi_upstream.transport._serializer import OutgoingRequest, serialize_headers

OK = b"HTTP/1.1 200 OK\r\n"


def started(method: str = "GET", head: bytes = b"") -> ResponseParser:
    parser = ResponseParser()
    parser.start(OutgoingRequest(method, head, b"", 0, None, None))
    return parser


def test_chunks_are_decoded_however_they_are_cut() -> None:
    raw = b"3\r\nabc\r\n00a;x=y\r\n0123456789\r\n0\r\na: b\r\n\r\nrest"
    for size in range(1, len(raw)):
        decoder = ChunkedDecoder()
        pieces = [raw[start : start + size] for start in range(0, len(raw), size)]
        body = b"".join(decoder.feed(piece) for piece in pieces if not decoder.done)
        assert (body, decoder.done) == (b"abc0123456789", True)
        assert b"rest".startswith(decoder.excess)


@pytest.mark.parametrize("raw", [b"x\r\n", b"0\r\na b\r\n\r\n", b"3\nabc\r\n"])
def test_malformed_chunks_are_a_parse_error(raw: bytes) -> None:
    with pytest.raises(ParseError):
        ChunkedDecoder().feed(raw)


@pytest.mark.parametrize(
    ("line", "is_valid"),
    [
        (b"3", True),
        (b"3 \t", True),
        (b"3;", True),
        (b'3;a="b;c" \xe9', True),
        (b"0000000000000003", True),
        (b"00000000000000003", False),
        (b"", False),
        (b" 3", False),
        (b"-3", False),
        (b"0x3", False),
        (b"3 ;a", False),
        (b"3;a\0", False),
        (b"3;a\rb", False),
        (b"3;a\nb", False),
    ],
)
def test_chunk_size_is_hexadecimal_with_an_extension(line: bytes, is_valid: bool) -> None:
    decoder = ChunkedDecoder()
    if is_valid:
        assert decoder.feed(line + b"\r\nabc\r\n0\r\n\r\n") == b"abc"
        assert decoder.done
    else:
        with pytest.raises(ParseError, match="malformed chunk size"):
            decoder.feed(line + b"\r\nabc\r\n0\r\n\r\n")


@pytest.mark.parametrize("end", [b"k\r\n", b"\n\n", b"\r\r", b"\rk", b"\nk", b"k"])
def test_chunk_ends_with_crlf(end: bytes) -> None:
    decoder = ChunkedDecoder()
    assert decoder.feed(b"2\r\nok") == b"ok"
    with pytest.raises(ParseError, match=r"malformed chunk$"):
        decoder.feed(end + b"0\r\n\r\n")


@pytest.mark.parametrize("digit", b"0123456789abcdefABCDEF")
def test_chunk_size_may_have_each_hexadecimal_digit(digit: int) -> None:
    size = int(chr(digit), 16) + 16
    decoder = ChunkedDecoder()
    assert decoder.feed(b"1%c\r\n" % digit + b"x" * size + b"\r\n0\r\n\r\n") == b"x" * size


@pytest.mark.parametrize(
    ("trailers", "is_valid"),
    [
        (b"", True),
        (b"a: b\r\n", True),
        (b"a:\r\n", True),
        (b"a: b\xe9\t \nc: d\r\n", True),
        (b"a: b\r\n c\r\n\td\n", True),
        (b"a: b\r\n \r\nc: d\r\n", True),
        (b": b\r\n", False),
        (b"a b: c\r\n", False),
        (b"a\r\n", False),
        (b" a: b\r\n", False),
        (b"a: b\nc d\r\n", False),
        (b"a: b\n c\nd e\r\n", False),
        *[(b"a: b%bc\r\n" % control, False) for control in (b"\0", b"\r", b"\x0b", b"\x0c")],
        *[(b"a: b\r\n c%bd\r\n" % control, False) for control in (b"\0", b"\r", b"\x0b", b"\x0c")],
    ],
)
def test_trailers_are_header_lines(trailers: bytes, is_valid: bool) -> None:
    for end in (b"\r\n", b"\n"):
        decoder = ChunkedDecoder()
        if is_valid:
            assert decoder.feed(b"0\r\n" + trailers + end + b"rest") == b""
            assert (decoder.done, decoder.excess) == (True, b"rest")
        else:
            with pytest.raises(ParseError, match="malformed trailer"):
                decoder.feed(b"0\r\n" + trailers + end)


@pytest.mark.parametrize("start", [b"1;", b"0\r\na: "])
def test_chunk_head_and_trailers_are_bounded(start: bytes) -> None:
    decoder = ChunkedDecoder()
    unfinished = start.removeprefix(b"0\r\n")
    decoder.feed(start + b"x" * (64 * 1024 - len(unfinished)))
    assert not decoder.done
    with pytest.raises(ParseError, match="too large"):
        decoder.feed(b"x")


def test_body_before_a_malformed_chunk_is_returned_first() -> None:
    for raw in (b"3\r\nabcd\r\n", b"3\r\nabc\r\nx\r\n", b"3\r\nabc\r\n0\r\na b\r\n\r\n"):
        decoder = ChunkedDecoder()
        assert decoder.feed(raw) == b"abc"
        assert decoder.has_more
        with pytest.raises(ParseError):
            decoder.feed(b"")


def test_many_tiny_chunks_are_decoded_in_turns() -> None:
    decoder = ChunkedDecoder()
    body = decoder.feed(b"1\r\nx\r\n" * 5000 + b"0\r\n\r\n")
    sizes = [len(body)]
    while decoder.has_more:
        sizes.append(len(decoder.feed(b"")))
    assert (sizes, decoder.done) == ([2000, 2000, 1000], True)


@pytest.mark.parametrize("version", [b"0.9", b"1.2", b"2.0", b"5.6"])
def test_only_http_1_0_and_1_1_are_parsed(version: bytes) -> None:
    with pytest.raises(ParseError, match="malformed status line"):
        started().feed(b"HTTP/" + version + b" 200 OK\r\n\r\n")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"HTTP/1.1 200 OK", (b"HTTP/1.1", 200, b"OK")),
        (b"HTTP/1.0 404 Not \xe9", (b"HTTP/1.0", 404, b"Not \xe9")),
        (b"HTTP/1.1 999", (b"HTTP/1.1", 999, b"")),
        (b"HTTP/1.1 200 ", (b"HTTP/1.1", 200, b"")),
        (b"HTTP/1.1 020 OK", None),
        (b"HTTP/1.1 20 OK", None),
        (b"HTTP/1.1 2000 OK", None),
        (b"HTTP/1.1  200 OK", None),
        (b"HTTP/1.1 200OK", None),
        (b"HTTP/1x1 200 OK", None),
        (b"http/1.1 200 OK", None),
        *[(b"HTTP/1.1 200 O%bK" % control, None) for control in (b"\0", b"\r", b"\x0b", b"\x0c")],
    ],
)
@pytest.mark.parametrize("end", [b"\r\n", b"\n"])
def test_status_line_is_parsed(line: bytes, end: bytes, expected: object) -> None:
    if expected is None:
        with pytest.raises(ParseError, match="malformed status line"):
            parse_head(line + end + b"\r\n")
    else:
        head = parse_head(line + end + b"\r\n")
        assert (head.version, head.status, head.reason) == expected


@pytest.mark.parametrize(
    ("start", "lines", "expected"),
    [
        (OK, b"", True),
        (b"HTTP/1.0 200 OK\r\n", b"", False),
        (b"HTTP/1.0 200 OK\r\n", b"connection: keep-alive\r\n", False),
        (OK, b"connection: keep-alive\r\n", True),
        (OK, b"connection: closed\r\n", True),
        (OK, b"Connection: Close\r\n", False),
        (OK, b"connection: x-a , close ,x-b\r\n", False),
        (OK, b"connection: close\r\nconnection: keep-alive\r\n", False),
    ],
)
def test_connection_is_kept_unless_the_head_closes_it(
    start: bytes, lines: bytes, expected: bool
) -> None:
    assert parse_head(start + lines + b"\r\n").keep_alive is expected


@pytest.mark.parametrize(
    ("status", "lines", "expected"),
    [
        (200, b"", (ReadState.UNTIL_CLOSE, 0)),
        (200, b"content-length: 5\r\n", (ReadState.LENGTH, 5)),
        (200, b"content-length: " + b"9" * 19 + b"\r\n", (ReadState.LENGTH, 10**19 - 1)),
        (200, b"Transfer-Encoding: Chunked\r\n", (ReadState.CHUNKED, 0)),
        (101, b"content-length: 5\r\n", (ReadState.UPGRADED, 0)),
        (204, b"content-length: 5\r\n", (ReadState.LENGTH, 0)),
        (304, b"content-length: 5\r\n", (ReadState.LENGTH, 0)),
        (204, b"transfer-encoding: chunked\r\n", (ReadState.LENGTH, 0)),
        (205, b"", (ReadState.UNTIL_CLOSE, 0)),
    ],
)
def test_end_of_the_body_follows_status_and_headers(
    status: int, lines: bytes, expected: tuple[ReadState, int]
) -> None:
    head = parse_head(b"HTTP/1.1 %d \r\n" % status + lines + b"\r\n")
    assert (head.framing, head.length) == expected


@pytest.mark.parametrize(
    "lines",
    [
        b"content-length: 5\r\ntransfer-encoding: chunked\r\n",
        b"transfer-encoding: gzip\r\n",
        b"transfer-encoding: gzip, chunked\r\n",
        b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
        b"content-length: 5\r\ncontent-length: 6\r\n",
        b"content-length: 5, 6\r\n",
        b"content-length: X5, 5\r\n",
        b"content-length: \r\n",
        b"content-length: +5\r\n",
        b"content-length: " + b"9" * 20 + b"\r\n",
    ],
)
@pytest.mark.parametrize("status", [101, 200, 204])
def test_ambiguous_end_of_the_body_is_refused(status: int, lines: bytes) -> None:
    with pytest.raises(ParseError, match=r"Transfer-Encoding|Content-Length"):
        parse_head(b"HTTP/1.1 %d \r\n" % status + lines + b"\r\n")


@pytest.mark.parametrize(
    "lines",
    [
        b"Content-Length: 5\r\nx: 1\r\ncontent-length:5\r\ny: 2\r\n",
        b"Content-Length: 5 ,\t5\r\nx: 1\r\ny: 2\r\n",
    ],
)
def test_equal_lengths_become_one_header(lines: bytes) -> None:
    head = parse_head(OK + b"a: 0\r\n" + lines + b"\r\n")
    assert (head.framing, head.length) == (ReadState.LENGTH, 5)
    assert head.headers == [(b"a", b"0"), (b"Content-Length", b"5"), (b"x", b"1"), (b"y", b"2")]


def test_head_has_128_headers_at_most() -> None:
    assert len(parse_head(OK + b"a: b\r\n" * 128 + b"\r\n").headers) == 128
    with pytest.raises(ParseError, match="too many headers"):
        parse_head(OK + b"a: b\r\n" * 129 + b"\r\n")


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (b"A: b\r\n", [(b"A", b"b")]),
        (b"a:\t b c \t\r\n", [(b"a", b"b c")]),
        (b"a:\r\n", [(b"a", b"")]),
        (b"a: b:c\xe9\r\n", [(b"a", b"b:c\xe9")]),
        (b"a: X b X\r\n", [(b"a", b"X b X")]),
        (b"a: b\nc: d\r\n", [(b"a", b"b"), (b"c", b"d")]),
        (b"a: b\r\n \t c\n\td\r\n", [(b"a", b"b c d")]),
        (b"a\r\n", None),
        (b"a b: c\r\n", None),
        (b"a: b\rc\r\n", None),
        (b"a: b\0\r\n", None),
        (b"a: b\x7f\r\n", None),
        (b" a: b\r\n", None),
        (b"\ta: b\r\n", None),
        (b"a: b\r\n\r\nc: d\r\n", None),
    ],
)
def test_header_lines_are_parsed(lines: bytes, expected: object) -> None:
    if expected is None:
        with pytest.raises(ParseError, match="header"):
            parse_head(OK + lines + b"\r\n")
    else:
        assert parse_head(OK + lines + b"\r\n").headers == expected


LENGTH_5 = OK + b"content-length: 5\r\n\r\n"
IN_CHUNKS = OK + b"transfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("raw", "body", "is_kept"),
    [
        (LENGTH_5 + b"hello", b"hello", True),
        (LENGTH_5 + b"hello" + OK, b"hello", False),
        (LENGTH_5.replace(b"5", b"0"), b"", True),
        (IN_CHUNKS + b"5\r\nhello\r\n0\r\n\r\n", b"hello", True),
        (IN_CHUNKS + b"5\r\nhello\r\n0\r\n\r\n" + OK, b"hello", False),
        (IN_CHUNKS.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n0\r\n\r\n"), b"", False),
    ],
)
def test_bytes_after_the_body_close_the_connection(raw: bytes, body: bytes, is_kept: bool) -> None:
    """They must not become the response to the next request."""
    parser = started()
    assert (parser.feed(raw), parser.state) == (body, ReadState.DONE)
    assert (parser.keep_alive, parser.expects_data) == (is_kept, False)


@pytest.mark.parametrize("head", [LENGTH_5, IN_CHUNKS, OK + b"\r\n"])
def test_response_to_head_has_no_body(head: bytes) -> None:
    parser = started("HEAD")
    assert (parser.feed(head), parser.state) == (b"", ReadState.DONE)
    parser = started("HEAD")
    assert parser.feed(head + b"5\r\nhello\r\n") == b""
    assert not parser.keep_alive


def test_request_may_close_the_connection() -> None:
    parser = ResponseParser()
    parser.start(OutgoingRequest("GET", b"", b"", 0, None, None, connection_close=True))
    assert parser.feed(LENGTH_5 + b"hello") == b"hello"
    assert not parser.keep_alive


def test_parser_expects_data_during_a_response() -> None:
    parser = ResponseParser()
    assert not parser.expects_data
    parser.start(OutgoingRequest("GET", b"", b"", 0, None, None))
    assert parser.expects_data
    parser.feed(LENGTH_5 + b"hell")
    assert parser.expects_data
    parser.feed(b"o")
    assert not parser.expects_data


def test_parser_has_more_after_very_many_chunks() -> None:
    parser = started()
    assert not parser.has_more
    chunks = b"1\r\nx\r\n" * (MAX_CHUNKS_AT_ONCE + 1) + b"0\r\n\r\n"
    assert len(parser.feed(IN_CHUNKS + chunks)) == MAX_CHUNKS_AT_ONCE
    assert parser.has_more
    assert parser.feed(b"") == b"x"
    assert (parser.has_more, parser.state) == (False, ReadState.DONE)


@pytest.mark.parametrize(
    ("head", "truncated", "expected"),
    [
        (b"", False, (False, ReadState.HEAD)),
        (OK + b"\r\n", False, (True, ReadState.DONE)),
        (OK + b"\r\n", True, (False, ReadState.UNTIL_CLOSE)),
        (OK + b"content-length: 1\r\n\r\n", False, (False, ReadState.LENGTH)),
        (OK + b"transfer-encoding: chunked\r\n\r\n", False, (False, ReadState.CHUNKED)),
        (OK + b"content-length: 0\r\n\r\n", True, (True, ReadState.DONE)),
    ],
)
def test_response_may_end_with_the_connection(
    head: bytes, truncated: bool, expected: tuple[bool, ReadState]
) -> None:
    parser = started()
    parser.feed(head)
    assert (parser.feed_eof(truncated=truncated), parser.state) == expected


def test_connection_is_not_kept_after_a_body_until_close() -> None:
    parser = started()
    parser.feed(OK + b"\r\n")
    assert parser.feed_eof()
    assert not parser.keep_alive


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("asked", [b"\r\nUpgrade: x", b"\r\nupgrade: x", b""])
def test_upgrade_must_have_been_asked_for(asked: bytes, method: str) -> None:
    parser = started(method, b"GET / HTTP/1.1" + asked + b"\r\n\r\n")
    switch = b"HTTP/1.1 101 Switching\r\nupgrade: x\r\n\r\nraw"
    if asked:
        assert (parser.feed(switch), parser.state) == (b"raw", ReadState.UPGRADED)
        assert parser.feed_eof(truncated=True)
        assert not parser.keep_alive
    else:
        with pytest.raises(ParseError, match="unexpected 101"):
            parser.feed(switch)


def test_other_protocols_are_refused_at_once() -> None:
    parser = started()
    assert parser.feed(b"HTT") == b""
    with pytest.raises(ParseError, match="not HTTP"):
        started().feed(b"SSH-2.0-OpenSSH")


@pytest.mark.parametrize(
    "framing", [b"content-length: 2", b"transfer-encoding: chunked", b"content-length: x", b"x: y"]
)
@pytest.mark.parametrize("status", [200, 204, 299])
def test_2xx_to_connect_is_a_tunnel(framing: bytes, status: int) -> None:
    parser = started("CONNECT")
    data = parser.feed(b"HTTP/1.1 %d OK\r\n%b\r\n\r\ntunnelled" % (status, framing))
    assert (data, parser.state, parser.keep_alive) == (b"tunnelled", ReadState.UPGRADED, False)


@pytest.mark.parametrize("status", [300, 407])
def test_refused_connect_has_a_framed_body(status: int) -> None:
    parser = started("CONNECT")
    assert parser.feed(b"HTTP/1.1 %d No\r\ncontent-length: 2\r\n\r\nno" % status) == b"no"
    assert (parser.state, parser.keep_alive) == (ReadState.DONE, True)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"timeout=5", 5),
        (b"timeout=5, max=100", 5),
        (b"max=100, Timeout = 7", 7),
        (b"max=1,\ttimeout\t=\t9", 9),
        (b"max=3", None),
        (b"timeout=x", None),
        (b"notimeout=3", None),
        (b"timeout=0", 0),
        (b'max=1;timeout="8"', 8),
        (b"timeout=1234567890", 123456789),
    ],
)
def test_keep_alive_timeout_is_parsed(value: bytes, seconds: int | None) -> None:
    parser = started()
    parser.feed(OK + b"content-length: 0\r\nKeep-Alive: " + value + b"\r\n\r\n")
    assert parser.head.keep_alive_timeout == seconds
    assert parse_head(OK + b"server: " + value + b"\r\n\r\n").keep_alive_timeout is None


@pytest.mark.parametrize(
    "codings",
    [[b"gzip, chunked"], [b"identity"], [b""], [b"chunked", b"chunked"], [b"chunked, gzip"]],
)
def test_request_codings_that_cannot_be_framed_are_refused(codings: list[bytes]) -> None:
    with pytest.raises(ValueError, match="unsupported Transfer-Encoding"):
        serialize_headers(
            ((b"host", b"a"), *((b"Transfer-Encoding", coding) for coding in codings))
        )
    assert serialize_headers(((b"host", b"a"), (b"transfer-encoding", b"Chunked")))[1] is None


@pytest.mark.parametrize("name", [b"", b"a b", b" a", b"a\0", b"a\r\nb", b"a\rb", b"a:b", b"\xff"])
def test_malformed_header_names_are_refused(name: bytes) -> None:
    with pytest.raises(ParseError):
        started().feed(OK + name.replace(b":", b" ") + b": x\r\ncontent-length: 0\r\n\r\n\r\n\r\n")
    with pytest.raises(ValueError, match="malformed header"):
        serialize_headers(((b"host", b"a"), (name, b"x")))


def test_interim_responses_are_bounded() -> None:
    interim = b"HTTP/1.1 103 Hints\r\nlink: " + b"x" * 1000 + b"\r\n\r\n"
    with pytest.raises(ParseError, match="exceeds 64 KiB"):
        started().feed(interim * 100)
    last = OK + b"x: %b\r\n\r\n"
    fill = 64 * 1024 - len(interim * 60) - len(last % b"")
    parser = started()
    parser.feed(interim * 60 + last % (b"x" * fill))
    assert parser.head.status == 200
    with pytest.raises(ParseError, match="exceeds 64 KiB"):
        started().feed(interim * 60 + last % (b"x" * (fill + 1)))


def test_bound_of_interim_responses_is_for_each_request() -> None:
    request = OutgoingRequest("GET", b"", b"", 0, None, None)
    parser = ResponseParser()
    for _ in range(3):
        parser.start(request)
        parser.feed(b"HTTP/1.1 103 Hints\r\nlink: " + b"x" * 40_000 + b"\r\n\r\n")
        assert parser.feed(LENGTH_5 + b"hello") == b"hello"


def test_the_parser_goes_from_head_to_body_to_done() -> None:
    parser = started()
    seen = [
        (parser.feed(data), parser.state)
        for data in (OK + b"content-le", b"ngth: 5\r\n\r\nhe", b"llo")
    ]
    assert seen == [(b"", ReadState.HEAD), (b"he", ReadState.LENGTH), (b"llo", ReadState.DONE)]
    assert parser.keep_alive


@pytest.mark.parametrize(
    "name", [b"set-cookie", b"location", b"x-session-token", b"www-authenticate", b"x-unknown"]
)
def test_heads_that_may_carry_secrets_are_not_cached(name: bytes) -> None:
    secret = b"secret-" + name
    parse_head(OK + name + b": " + secret + b"\r\nserver: fold\r\n ed\r\n\r\n")
    assert secret not in b"".join([*_response_head._heads, *_header_lines._lines])
    assert b"server: fold ed" in _header_lines._lines


@pytest.mark.parametrize("name", [b"authorization", b"Cookie", b"x-api-key", b"x-unknown"])
def test_request_headers_with_secrets_are_not_cached(name: bytes) -> None:
    serialize_headers([(b"host", b"a"), (name, b"secret")])
    assert (b"host", b"a") in _serializer._lines
    assert all(value != b"secret" for _, value in _serializer._lines)


def test_large_heads_and_headers_are_not_cached() -> None:
    for size in (1024, 1025):
        head = OK + b"date: a\r\n" * 100
        head += b"server: " + b"x" * (size - len(head) - 12) + b"\r\n\r\n"
        parse_head(head)
        assert (head in _response_head._heads) is (size == 1024)
    for size in (256, 257):
        line = b"server: " + b"x" * (size - 8)
        parse_head(OK + line + b"\r\n\r\n")
        assert (line in _header_lines._lines) is (size == 256)
    for size in (64, 65):
        parse_head(OK + b"x" * size + b": 1\r\n\r\n")
        assert (b"x" * size in _header_lines._names) is (size == 64)
    parse_head(OK + b"server: " + b"x" * 2000 + b"\r\n\r\n")
    parse_head(OK + b"server: %b\r\n" % (b"x" * 200) * 10 + b"\r\n")
    serialize_headers([(b"host", b"a"), (b"user-agent", b"x" * 2000)])
    assert all(len(data) <= 1024 for data in _response_head._heads)
    assert all(len(line) <= 256 for line in _header_lines._lines)
    assert all(len(line) <= 256 for line, _ in _serializer._lines.values())


def test_the_caches_hold_256_entries_at_most() -> None:
    for number in range(600):
        parse_head(OK + b"date: %d\r\n\r\n" % number)
        parse_head(OK + b"x-%d: 1\r\n\r\n" % number)
        serialize_headers([(b"host", b"%d" % number)])
        assert len(_response_head._heads) <= 256
        assert len(_header_lines._lines) <= 256
        assert len(_header_lines._names) <= 256
        assert len(_serializer._lines) <= 256

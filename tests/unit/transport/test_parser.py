"""The response parser and the serializer, without an event loop."""

import pytest

from asgi_upstream.transport import _header_lines, _response_head, _serializer
from asgi_upstream.transport._chunked import ChunkedDecoder
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
    "framing", [b"content-length: 2", b"transfer-encoding: chunked", b"content-length: x", b"x: y"]
)
@pytest.mark.parametrize("status", [200, 204, 299])
def test_2xx_to_connect_is_a_tunnel(framing: bytes, status: int) -> None:
    parser = started("CONNECT")
    data = parser.feed(b"HTTP/1.1 %d OK\r\n%b\r\n\r\ntunnelled" % (status, framing))
    assert (data, parser.state, parser.keep_alive) == (b"tunnelled", ReadState.UPGRADED, False)


def test_refused_connect_has_a_framed_body() -> None:
    parser = started("CONNECT")
    assert parser.feed(b"HTTP/1.1 407 No\r\ncontent-length: 2\r\n\r\nno") == b"no"
    assert (parser.state, parser.keep_alive) == (ReadState.DONE, True)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"timeout=5", 5),
        (b"timeout=5, max=100", 5),
        (b"max=100, Timeout = 7", 7),
        (b"max=3", None),
        (b"timeout=x", None),
        (b"notimeout=3", None),
        (b"timeout=0", 0),
    ],
)
def test_keep_alive_timeout_is_parsed(value: bytes, seconds: int | None) -> None:
    parser = started()
    parser.feed(OK + b"content-length: 0\r\nKeep-Alive: " + value + b"\r\n\r\n")
    assert parser.head.keep_alive_timeout == seconds


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
    parse_head(OK + b"server: " + b"x" * 2000 + b"\r\n\r\n")
    parse_head(OK + b"server: %b\r\n" % (b"x" * 200) * 10 + b"\r\n")
    serialize_headers([(b"host", b"a"), (b"user-agent", b"x" * 2000)])
    assert all(len(data) <= 1024 for data in _response_head._heads)
    assert all(len(line) <= 256 for line in _header_lines._lines)
    assert all(len(line) <= 256 for line, _ in _serializer._lines.values())


def test_the_caches_hold_256_entries_at_most() -> None:
    for number in range(600):
        parse_head(OK + b"date: %d\r\n\r\n" % number)
        serialize_headers([(b"host", b"%d" % number)])
    assert len(_response_head._heads) <= 256
    assert len(_header_lines._lines) <= 256
    assert len(_serializer._lines) <= 256

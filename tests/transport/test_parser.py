"""The response parser and the serializer, without an event loop."""

import pytest

from asgi_upstream.transport import _parser, _serializer
from asgi_upstream.transport._parser import ChunkedDecoder, ParseError, ReadState, ResponseParser
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


@pytest.mark.parametrize("raw", [b"x\r\n", b"3\r\nabcd\r\n", b"0\r\na b\r\n\r\n", b"3\nabc\r\n"])
def test_malformed_chunks_are_a_parse_error(raw: bytes) -> None:
    with pytest.raises(ParseError):
        ChunkedDecoder().feed(raw)


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
    _parser.parse_head(OK + name + b": " + secret + b"\r\n\r\n")
    assert secret not in b"".join(_parser._heads)


@pytest.mark.parametrize("name", [b"authorization", b"Cookie", b"x-api-key", b"x-unknown"])
def test_request_headers_with_secrets_are_not_cached(name: bytes) -> None:
    serialize_headers(((b"host", b"a"), (name, b"secret")))
    assert all(b"secret" not in lines for lines, _, _ in _serializer._cache.values())


def test_large_heads_and_headers_are_not_cached() -> None:
    _parser.parse_head(OK + b"server: " + b"x" * 2000 + b"\r\n\r\n")
    serialize_headers(((b"host", b"a"), (b"user-agent", b"x" * 2000)))
    assert all(len(data) <= 1024 for data in _parser._heads)
    assert all(len(lines) <= 1024 for lines, _, _ in _serializer._cache.values())


def test_the_caches_hold_64_entries_at_most() -> None:
    for number in range(500):
        _parser.parse_head(OK + b"date: %d\r\n\r\n" % number)
        serialize_headers(((b"host", b"%d" % number),))
    assert len(_parser._heads) <= 64
    assert len(_serializer._cache) <= 64

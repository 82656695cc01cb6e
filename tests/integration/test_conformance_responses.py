"""What crosses to the caller, by section of RFC 9110 and 9112, over raw sockets on both sides.

All of it on one server, and on every server the tests that depend on the server.
"""

import pytest

from tests.support.server_choice import ONE_SERVER, every_server
from tests.support.servers import Answer, Server
from tests.support.waiting import eventually
from tests.support.wire import (
    FIELD_VALUES,
    OK,
    Wire,
    connect,
    head,
    relayed,
    send,
    until_the_end,
)

pytest_plugins = ["tests.support.wire_fixtures"]

EMPTY = "Content-Length: 0"
HEAD = b"HTTP/1.1 200 OK\r\n"


# RFC 9110 7.6.1: what is for one hop.

HOP_BY_HOP = {
    "Connection": "x-theirs",
    "Keep-Alive": "timeout=5",
    "Proxy-Connection": "keep-alive",
    "Proxy-Authenticate": "Basic",
    "Proxy-Authorization": "Basic YTpi",
    "TE": "trailers",
    "Trailer": "x-checksum",
    "Upgrade": "something/1",
}


@pytest.mark.parametrize("name", HOP_BY_HOP)
def test_9110_7_6_1_a_field_of_one_hop_does_not_reach_the_caller(
    forwarder: Server, wire: Wire, name: str
) -> None:
    answer = relayed(forwarder, wire, f"{name}: {HOP_BY_HOP[name]}", EMPTY, "X-Kept: 1")
    assert (answer.status, answer.field(b"x-kept")) == (200, b"1")
    assert HOP_BY_HOP[name].encode() not in answer.all(name.lower().encode())


NAMED = {
    "one": ["Connection: x-a"],
    "in other case": ["CONNECTION: X-A"],
    "several": ["Connection: x-0, x-a,close"],
    "over several lines": ["Connection: keep-alive", "connection: x-a", "Connection: x-0"],
    "among empty elements": ["Connection: ,, x-a , B"],
    "after a tab": ["Connection: \t,\tx-a\t,"],
}


@pytest.mark.parametrize("lines", NAMED.values(), ids=NAMED)
def test_9110_7_6_1_header_named_in_connection_is_not_relayed(
    forwarder: Server, wire: Wire, lines: list[str]
) -> None:
    closes = "close" in lines[0]
    answer = relayed(forwarder, wire, "X-A: 1", *lines, "x-a: 2", "X-Ab: 3", EMPTY, closes=closes)
    assert answer.status == 200
    assert (answer.all(b"x-a"), answer.all(b"x-ab")) == ([], [b"3"])


@every_server
def test_9110_7_6_1_connection_cannot_strip_a_responses_length(
    forwarder: Server, wire: Wire
) -> None:
    lines = ["Connection: content-length", "Content-Length: 5"]
    answer = relayed(forwarder, wire, *lines, body=b"hello")
    assert (answer.status, answer.body, answer.complete) == (200, b"hello", True)


# RFC 9110 5: order, repetition and bytes.


@every_server
def test_9110_5_3_repeated_fields_pass_one_by_one_and_in_order(
    forwarder: Server, wire: Wire
) -> None:
    lines = ["Set-Cookie: b=2", "X-Twice: 2", "Set-Cookie: a=1; Path=/", "x-twice: 1"]
    answer = relayed(forwarder, wire, *lines, EMPTY)
    assert answer.all(b"set-cookie") == [b"b=2", b"a=1; Path=/"]
    assert answer.all(b"x-twice") == [b"2", b"1"]


@every_server
@pytest.mark.parametrize(("sent", "expected"), FIELD_VALUES.values(), ids=FIELD_VALUES)
def test_9110_5_5_a_value_keeps_its_bytes(
    forwarder: Server, wire: Wire, sent: str, expected: bytes
) -> None:
    answer = relayed(forwarder, wire, f"X-Value: {sent}", EMPTY)
    assert answer.all(b"x-value") == [expected]


@every_server
def test_9110_6_6_1_date_and_server_are_sent_once_and_ours(forwarder: Server, wire: Wire) -> None:
    lines = ["Date: Thu, 01 Jan 1970 00:00:00 GMT", "Server: inside", EMPTY]
    answer = relayed(forwarder, wire, *lines)
    assert len(answer.all(b"date")) == 1
    assert b"1970" not in answer.all(b"date")[0]
    assert len(answer.all(b"server")) <= 1
    assert b"inside" not in answer.all(b"server")


OF_THE_ORIGIN = {
    "Content-Type": "text/html; charset=latin-1",
    "ETag": 'W/"v1"',
    "Last-Modified": "Thu, 01 Jan 1970 00:00:00 GMT",
    "Cache-Control": "max-age=9, private",
    "Vary": "accept, origin",
    "Age": "7",
    "Location": "http://inside.example/x",
    "WWW-Authenticate": 'Basic realm="x"',
    "Retry-After": "3",
    "Allow": "GET",
    "Link": "</a>; rel=preload",
    "Strict-Transport-Security": "max-age=9",
    "Via": "1.1 inside",
}


@pytest.mark.parametrize("name", OF_THE_ORIGIN)
def test_9110_a_field_of_the_origin_passes(forwarder: Server, wire: Wire, name: str) -> None:
    answer = relayed(forwarder, wire, f"{name}: {OF_THE_ORIGIN[name]}", EMPTY)
    assert answer.all(name.lower().encode()) == [OF_THE_ORIGIN[name].encode()]


# RFC 9112 6 and 7: the framing of a response. Id: lines, body, whether the upstream closes then.

CHUNKED = b'3;ext=1;b="q;"\r\nabc\r\n002\r\nde\r\n0;last\r\nX-Trailer: 1\r\n\r\n'
TE = "Transfer-Encoding: chunked"
FRAMINGS: dict[str, tuple[str, list[str], bytes, bool]] = {
    "length": ("1.1", ["Content-Length: 5"], b"abcde", False),
    "length, then close": ("1.1", ["Content-Length: 5", "Connection: close"], b"abcde", True),
    "length with zeros": ("1.1", ["Content-Length: 005"], b"abcde", False),
    "equal lengths": ("1.1", ["Content-Length: 5", "Content-Length: 5"], b"abcde", False),
    "equal lengths in one line": ("1.1", ["Content-Length: 5, 5"], b"abcde", False),
    "chunked": ("1.1", [TE], b"5\r\nabcde\r\n0\r\n\r\n", False),
    "in other case": ("1.1", ["transfer-encoding: CHUNKED"], b"5\r\nabcde\r\n0\r\n\r\n", False),
    "extensions and trailers": ("1.1", [TE, "Trailer: X-Trailer"], CHUNKED, False),
    "both": ("1.1", ["Content-Length: 3", TE], CHUNKED, False),
    "both, length last": ("1.1", [TE, "Content-Length: 3"], CHUNKED, False),
    "close": ("1.1", [], b"abcde", True),
    "1.0 with a length": ("1.0", ["Content-Length: 5"], b"abcde", True),
    "1.0 with keep-alive": ("1.0", ["Content-Length: 5", "Connection: keep-alive"], b"abcde", True),
    "1.0 until close": ("1.0", [], b"abcde", True),
}


@every_server
@pytest.mark.parametrize("what", FRAMINGS)
def test_9112_6_a_body_passes_whole_in_one_framing(
    forwarder: Server, wire: Wire, what: str
) -> None:
    version, lines, body, closes = FRAMINGS[what]
    answer = relayed(forwarder, wire, *lines, version=version, body=body, closes=closes)
    if what.startswith("both") and forwarder.transport:  # AsyncioTransport takes no guess
        assert answer.status == 502
        return
    assert (answer.status, answer.body, answer.complete) == (200, b"abcde", True)
    has_length = bool(lines) and TE.lower() not in " ".join(lines).lower()
    assert [int(value) for value in answer.all(b"content-length")] == [5] * has_length
    assert len(answer.all(b"content-length") + answer.all(b"transfer-encoding")) == 1
    assert answer.all(b"trailer") == answer.all(b"x-trailer") == []


@every_server
@pytest.mark.parametrize("what", ["chunked", "close"])
def test_9112_6_1_an_http_1_0_caller_gets_no_chunks(
    forwarder: Server, wire: Wire, what: str
) -> None:
    if forwarder.name == "uvicorn-httptools":
        pytest.xfail("uvicorn with httptools sends chunks to HTTP/1.0 callers too")
    version, lines, body, wire.closes = FRAMINGS[what]
    wire.answer = "\r\n".join([f"HTTP/{version} 200 OK", *lines, "", ""]).encode() + body
    answer = send(forwarder, head("GET", "/forward/x", version="1.0"))
    assert (answer.status, answer.body) == (200, b"abcde")
    assert answer.all(b"transfer-encoding") == []


# RFC 9110 15: statuses.


@every_server
@pytest.mark.parametrize("status", ["100 Continue", "102 Processing", "103 Early Hints"])
def test_9110_15_2_an_interim_answer_does_not_end_the_wait(
    forwarder: Server, wire: Wire, status: str
) -> None:
    interim = f"HTTP/1.1 {status}\r\nLink: </a>; rel=preload\r\n\r\n".encode()
    wire.answer = interim * 3 + OK
    with connect(forwarder) as connection:
        connection.sendall(head("GET", "/forward/x"))
        answer = Answer(until_the_end(connection))
    assert (answer.status, answer.body, answer.all(b"link")) == (200, b"ok", [])


@every_server
@pytest.mark.parametrize("asked", [(), ("Upgrade: x", "Connection: upgrade")], ids=["not", "asked"])
def test_9110_15_2_2_101_is_502_for_any_caller(
    forwarder: Server, wire: Wire, asked: tuple[str, ...]
) -> None:
    lines = ["Upgrade: x", "Connection: upgrade"]
    answer = relayed(
        forwarder, wire, *lines, status="101 Switching", body=b"hello", fields=asked, closes=True
    )
    assert answer.status == 502
    assert b"hello" not in answer.body


@every_server
@pytest.mark.parametrize("block", range(200, 600, 100))
def test_9110_15_every_final_status_passes(forwarder: Server, wire: Wire, block: int) -> None:
    step = 1 if forwarder.name in ONE_SERVER else 7
    for status in range(block, block + 100, step):
        body = b"" if status in (204, 205, 304) else b"ok"
        lines = [] if status in (204, 304) else [f"Content-Length: {len(body)}"]
        answer = relayed(forwarder, wire, *lines, "X-Kept: 1", status=f"{status} Any", body=body)
        assert (answer.status, answer.body) == (status, body)
        assert (answer.field(b"x-kept"), answer.complete) == (b"1", True)


@pytest.mark.parametrize("line", ["200", "200 ", "200 \xe9", "200 a b  c"])
def test_9112_4_any_reason_will_do(forwarder: Server, wire: Wire, line: str) -> None:
    answer = relayed(forwarder, wire, "Content-Length: 2", status=line, body=b"ok")
    assert (answer.status, answer.body) == (200, b"ok")


@pytest.mark.parametrize("status", ["000", "099", "600", "777", "999"])
def test_9110_15_a_number_that_is_no_status_is_502(
    forwarder: Server, wire: Wire, status: str
) -> None:
    assert relayed(forwarder, wire, EMPTY, status=f"{status} Odd", closes=True).status == 502


# RFC 9110 8, 13, 14: codings, conditions, ranges.


@pytest.mark.parametrize(
    "coding", ["gzip", "br", "zstd", "x-unknown", "gzip, x-unknown", "identity"]
)
def test_9110_8_4_a_content_coding_passes_as_it_is(
    forwarder: Server, wire: Wire, coding: str
) -> None:
    lines = [f"Content-Encoding: {coding}", "Content-Length: 4"]
    answer = relayed(forwarder, wire, *lines, body=b"\x1f\x8b\x00z")
    assert (answer.status, answer.body) == (200, b"\x1f\x8b\x00z")
    assert answer.all(b"content-encoding") == [coding.encode()]
    assert answer.all(b"content-length") == [b"4"]


def test_9110_14_a_range_passes_both_ways(forwarder: Server, wire: Wire) -> None:
    lines = ["Content-Range: bytes 1-3/9", "Content-Length: 3", "Accept-Ranges: bytes"]
    asked = ("Range: bytes=1-3", 'If-Range: "v1"')
    answer = relayed(forwarder, wire, *lines, status="206 Part", body=b"bcd", fields=asked)
    assert (answer.status, answer.body) == (206, b"bcd")
    assert answer.all(b"content-range") == [b"bytes 1-3/9"]
    assert answer.all(b"accept-ranges") == [b"bytes"]
    assert (wire.only.all(b"range"), wire.only.all(b"if-range")) == ([b"bytes=1-3"], [b'"v1"'])


def test_9110_15_5_17_a_range_that_cannot_be_met_passes(forwarder: Server, wire: Wire) -> None:
    lines = ["Content-Range: bytes */9", EMPTY]
    answer = relayed(forwarder, wire, *lines, status="416 Range", fields=("Range: bytes=20-",))
    assert (answer.status, answer.all(b"content-range")) == (416, [b"bytes */9"])


@every_server
def test_9110_15_4_5_a_304_keeps_its_fields_and_has_no_body(forwarder: Server, wire: Wire) -> None:
    date = "Thu, 01 Jan 1970 00:00:00 GMT"
    asked = ('If-None-Match: "v1", W/"v2"', f"If-Modified-Since: {date}")
    lines = ['ETag: "v1"', "Content-Length: 1000", "Cache-Control: max-age=9", "Vary: accept"]
    answer = relayed(forwarder, wire, *lines, status="304 Same", fields=asked)
    assert (answer.status, answer.body, answer.field(b"etag")) == (304, b"", b'"v1"')
    assert (answer.field(b"vary"), answer.field(b"cache-control")) == (b"accept", b"max-age=9")
    assert answer.all(b"content-length") in ([b"1000"], [])
    assert wire.only.all(b"if-none-match") == [b'"v1", W/"v2"']
    assert wire.only.all(b"if-modified-since") == [date.encode()]


# RFC 9110 6.4.1: messages without content.


@every_server
@pytest.mark.parametrize("line", ["Content-Length: 1000", TE, "X-A: 1"])
@pytest.mark.parametrize("status", ["200 OK", "404 Not Found"])
def test_9110_9_3_2_head_has_no_body_and_keeps_the_length(
    forwarder: Server, wire: Wire, line: str, status: str
) -> None:
    answer = relayed(forwarder, wire, line, 'ETag: "v1"', method="HEAD", status=status)
    assert wire.only.method == b"HEAD"
    assert (answer.status, answer.body) == (int(status[:3]), b"")
    assert answer.field(b"etag") == b'"v1"'
    assert answer.all(b"content-length") == ([b"1000"] if "Length" in line else [])


NO_CONTENT = {
    "nothing said": ([], b""),
    "a length of nothing": ([EMPTY], b""),
    "a length": (["Content-Length: 5"], b"hello"),
    "chunked": ([TE], b"5\r\nhello\r\n0\r\n\r\n"),
}


@every_server
@pytest.mark.parametrize("status", [204, 205, 304])
@pytest.mark.parametrize(("lines", "body"), NO_CONTENT.values(), ids=NO_CONTENT)
def test_9110_6_4_1_response_without_content_is_relayed_empty(
    forwarder: Server, wire: Wire, status: int, lines: list[str], body: bytes
) -> None:
    answer = relayed(
        forwarder, wire, *lines, status=f"{status} Empty", body=body, closes=bool(body)
    )
    assert (answer.status, answer.body) == (status, b"")
    if status == 204:  # RFC 9110 8.6, RFC 9112 6.1
        assert answer.all(b"content-length") == answer.all(b"transfer-encoding") == []
    if status == 205:
        assert answer.field(b"content-length") in (None, b"0")


# RFC 9112 2 to 6: a malformed head is 502, never a guess.


def with_field(line: bytes) -> bytes:
    return HEAD + line + b"\r\nContent-Length: 5\r\n\r\nhello"


def with_length(value: bytes) -> bytes:
    return HEAD + b"Content-Length: " + value + b"\r\n\r\nhello!"


def with_coding(value: bytes) -> bytes:
    return HEAD + b"Transfer-Encoding: " + value + b"\r\n\r\n5\r\nhello\r\n0\r\n\r\n"


def with_line(line: bytes) -> bytes:
    return line + b"\r\nContent-Length: 5\r\n\r\nhello"


MALFORMED = {
    "6.3 lengths that differ": with_length(b"5\r\nContent-Length: 6"),
    "6.3 lengths that differ, the first less": with_length(b"6\r\nContent-Length: 5"),
    "6.3 lengths that differ in one line": with_length(b"5, 6"),
    "6.3 a negative length": with_length(b"-5"),
    "6.3 a length that is no number": with_length(b"five"),
    "6.3 a length with a plus": with_length(b"+5"),
    "6.3 a length with an underscore": with_length(b"0_5"),
    "6.3 a length in hex": with_length(b"0x5"),
    "6.3 a length with a point": with_length(b"5.0"),
    "6.3 a length with a blank": with_length(b"5 5"),
    "6.3 a length of other digits": with_length(b"\xb2"),
    "6.3 an empty length": with_length(b""),
    "6.3 a length and nothing": with_length(b"5,"),
    "6.3 a length beyond all": with_length(b"9" * 40),
    "6.1 chunked not last": with_coding(b"chunked, gzip"),
    "6.1 another coding": with_coding(b"gzip"),
    "6.1 an unknown coding": with_coding(b"x-unknown"),
    "6.1 another coding before chunked": with_coding(b"gzip, chunked"),
    "6.1 chunked twice": with_coding(b"chunked, chunked"),
    "6.1 chunked twice in two lines": with_coding(b"chunked\r\nTransfer-Encoding: chunked"),
    "6.1 identity": with_coding(b"identity"),
    "6.1 no coding": with_coding(b""),
    "6.1 chunked in quotes": with_coding(b'"chunked"'),
    "6.1 chunked with a parameter": with_coding(b"chunked;a=b"),
    "5.1 space before a colon": with_field(b"X-A : 1"),
    "5.1 space before a length's colon": HEAD + b"Content-Length : 5\r\n\r\nhello",
    "5.1 a tab before a coding's colon": with_field(b"Transfer-Encoding\t: chunked"),
    "5 a line without a colon": with_field(b"X-A"),
    "5 an empty name": with_field(b": 1"),
    "5 a space in a name": with_field(b"X A: 1"),
    "5 a name with bytes above 127": with_field(b"X-\xe9: 1"),
    "5.2 a folded line before all": with_field(b" X-A: 1"),
    "9110 5.5 NUL in a value": with_field(b"X-A: a\x00b"),
    "9110 5.5 NUL in a name": with_field(b"X\x00A: 1"),
    "9110 5.5 CR in a value": with_field(b"X-A: a\rb"),
    "4 no status line": with_line(b"X-A: 1"),
    "4 no version": with_line(b"200 OK"),
    "4 an odd version": with_line(b"HTTP/x 200 OK"),
    "4 a version in lower case": with_line(b"http/1.1 200 OK"),
    "4 another protocol's line": with_line(b"ICY 200 OK"),
    "4 two digits of status": with_line(b"HTTP/1.1 20 OK"),
    "4 four digits of status": with_line(b"HTTP/1.1 2000 OK"),
    "4 a negative status": with_line(b"HTTP/1.1 -20 OK"),
    "4 a status in letters": with_line(b"HTTP/1.1 OK"),
    "4 NUL in a reason": with_line(b"HTTP/1.1 200 O\x00K"),
    "2.1 a byte before all": b"x" + OK,
    "2.1 garbage": bytes(range(256)) * 4,
    "2.1 another protocol": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "2.1 TLS": b"\x15\x03\x01\x00\x02\x02\x46" * 10,
    "2.1 HTTP/2": b"\x00\x00\x12\x04\x00\x00\x00\x00\x00" * 3,
    "2.1 a request": b"GET / HTTP/1.1\r\nHost: app\r\n\r\n",
    "8 nothing": b"",
    "8 a part of a status line": b"HTTP/1.1 20",
    "8 a part of a head": HEAD + b"Content-Len",
    "8 a head without its end": HEAD + b"Content-Length: 5\r\n",
    "8 only interim": b"HTTP/1.1 100 Continue\r\n\r\n",
    "2.2 a huge field": HEAD + b"X-A: " + b"a" * 1_000_000 + b"\r\n\r\n",
    "2.2 a huge status line": b"HTTP/1.1 200 " + b"a" * 1_000_000 + b"\r\n\r\n",
    "2.2 many fields": HEAD + b"X-A: 1\r\n" * 100_000 + b"\r\n",
}


@pytest.mark.parametrize("what", MALFORMED)
def test_9112_malformed_response_is_502_and_closes_connection(
    forwarder: Server, wire: Wire, what: str
) -> None:
    wire.answer, wire.closes = MALFORMED[what], True
    answer = send(forwarder, head("GET", "/forward/x"))
    assert answer.status == 502
    assert answer.body == b'{"detail":"The upstream sent an invalid response"}'
    eventually(lambda: wire.only.closed)


# httpx 0.28's parser joins such lines to one, as RFC 9112 5.2 allows instead of a 502.
def test_9112_5_2_a_folded_line_is_unfolded_or_refused(forwarder: Server, wire: Wire) -> None:
    wire.answer, wire.closes = with_field(b"X-A: 1\r\n 2"), True
    answer = send(forwarder, head("GET", "/forward/x"))
    assert answer.status == 502 or answer.all(b"x-a") == [b"1 2"]


# RFC 9112 8: once the head is relayed, all that is left is to cut the connection.

CUT = {
    "a short length": (["Content-Length: 50"], b"hello"),
    "a length and nothing": (["Content-Length: 50"], b""),
    "chunks without an end": ([TE], b"5\r\nhello\r\n"),
    "half a chunk": ([TE], b"5\r\nhello\r\n9\r\nhe"),
    "half a size": ([TE], b"5\r\nhello\r\n1"),
    "a chunk of no size": ([TE], b"5\r\nhello\r\nzz\r\n"),
    "an empty size": ([TE], b"5\r\nhello\r\n\r\n"),
    "a size with 0x": ([TE], b"5\r\nhello\r\n0x5\r\nhello\r\n0\r\n\r\n"),
    "a size with a plus": ([TE], b"5\r\nhello\r\n+5\r\nhello\r\n0\r\n\r\n"),
    "a size below zero": ([TE], b"5\r\nhello\r\n-1\r\n"),
    "a size with an underscore": ([TE], b"5\r\nhello\r\n0_5\r\nhello\r\n0\r\n\r\n"),
    "a chunk that is too long": ([TE], b"5\r\nhello, you\r\n0\r\n\r\n"),
    "a chunk that is too short": ([TE], b"9\r\nhello\r\n0\r\n\r\n"),
    "a size without end": ([TE], b"5\r\nhello\r\n" + b"0" * 200_000),
    "a size beyond all": ([TE], b"5\r\nhello\r\n" + b"f" * 30 + b"\r\na"),
    "an extension without end": ([TE], b"5\r\nhello\r\n5;" + b"a" * 200_000),
    "a last chunk without its end": ([TE], b"5\r\nhello\r\n0\r\n"),
    "a trailer with a space": ([TE], b"5\r\nhello\r\n0\r\nX A: 1\r\n\r\n"),
    "a trailer without end": ([TE], b"5\r\nhello\r\n0\r\nX-A: " + b"a" * 200_000),
}


@every_server
@pytest.mark.parametrize("what", CUT)
def test_9112_8_an_answer_that_breaks_off_is_cut_off(
    forwarder: Server, wire: Wire, what: str
) -> None:
    lines, body = CUT[what]
    answer = relayed(forwarder, wire, *lines, body=body, closes=True)
    # granian answers 500 by itself where it was given a head and no body yet.
    statuses = (500, 502) if forwarder.name == "granian" else (502,)
    assert answer.status in statuses or (answer.status == 200 and not answer.complete)
    eventually(lambda: wire.only.closed)


# RFC 9112 6.3, 11.2: what follows an answer is no other's.

POISON = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison"
FOLLOWED = {
    "length": OK + POISON,
    "chunked": HEAD + TE.encode() + b"\r\n\r\n2\r\nok\r\n0\r\n\r\n" + POISON,
    "204": b"HTTP/1.1 204 None\r\nContent-Length: 46\r\n\r\n" + POISON,
    "304": b"HTTP/1.1 304 Same\r\nContent-Length: 46\r\n\r\n" + POISON,
}


@pytest.mark.parametrize("what", FOLLOWED)
def test_9112_6_3_bytes_after_a_response_are_not_another_one(
    forwarder: Server, wire: Wire, what: str
) -> None:
    wire.answer = FOLLOWED[what]
    for _ in range(4):
        answer = send(forwarder, head("GET", "/forward/x"))
        assert answer.status in (200, 204, 304, 502)
        assert b"poison" not in answer.body


def test_9110_9_3_2_body_after_head_is_not_another_response(forwarder: Server, wire: Wire) -> None:
    wire.answer = HEAD + b"Content-Length: 46\r\n\r\n" + POISON
    for _ in range(3):
        assert send(forwarder, head("HEAD", "/forward/x")).status in (200, 502)
    wire.answer = OK
    for _ in range(3):
        answer = send(forwarder, head("GET", "/forward/x"))
        assert (answer.status, answer.body) in ((200, b"ok"), (502, answer.body))
        assert b"poison" not in answer.body

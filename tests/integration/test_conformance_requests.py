"""What crosses to the upstream, by section of RFC 9110 and 9112, over raw sockets on both sides.

All of it on one server, and on every server the tests that depend on the server.
"""

import re

import pytest

from tests.support.server_choice import every_server
from tests.support.servers import Answer, Server
from tests.support.wire import FIELD_VALUES, Wire, connect, forwarded, head, send, until_the_end

pytest_plugins = ["tests.support.wire_fixtures"]


def twins(name: str) -> set[str]:
    return {name.replace("-", "_"), name.replace("-", "_", 1), name.upper().replace("-", "_")}


# RFC 9110 7.6.1: what is for one hop.

HOP_BY_HOP = {
    "Connection": "close, x-a",
    "Keep-Alive": "timeout=5",
    "Proxy-Connection": "keep-alive",
    "Proxy-Authenticate": "Basic",
    "Proxy-Authorization": "Basic YTpi",
    "TE": "trailers",
    "Trailer": "x-checksum",
    "Upgrade": "something/1",
    "HTTP2-Settings": "AAMAAABkAAQAAP__",  # RFC 7540 3.2.1
    "Proxy": "http://evil.example",  # https://httpoxy.org
}


@pytest.mark.parametrize("name", HOP_BY_HOP)
def test_9110_7_6_1_hop_by_hop_header_does_not_reach_upstream(
    forwarder: Server, wire: Wire, name: str
) -> None:
    seen = forwarded(forwarder, wire, f"{name}: {HOP_BY_HOP[name]}", "X-Kept: 1")
    assert name.lower().encode() not in seen.names
    assert seen.all(b"x-kept") == [b"1"]


NAMED = {
    "one": ["Connection: x-a"],
    "in other case": ["CONNECTION: X-A"],
    "several": ["Connection: x-0, x-a,close"],
    "over several lines": ["Connection: close", "connection: x-a", "Connection: x-0"],
    "among empty elements": ["Connection: ,, x-a , B"],
    "after a tab": ["Connection: \t,\tx-a\t,"],
    "an empty line": ["Connection:", "Connection: x-a"],
    "twice": ["Connection: x-a, x-a"],
}


@pytest.mark.parametrize("lines", NAMED.values(), ids=NAMED)
def test_9110_7_6_1_header_named_in_connection_is_not_forwarded(
    forwarder: Server, wire: Wire, lines: list[str]
) -> None:
    seen = forwarded(forwarder, wire, "X-A: 1", *lines, "x-a: 2", "X-Ab: 3")
    assert not {b"x-a", b"connection"} & seen.names
    assert seen.all(b"x-ab") == [b"3"]


STRIPPING = "Host, Cookie, Authorization, X-Api-Key, User-Agent"
SET = {"x-forwarded-for": b"127.0.0.1", "x-forwarded-host": b"app", "x-forwarded-proto": b"http"}
ON_THE_CLIENT = {
    "x-api-key": b"ours",
    "user-agent": b"ours",
    "authorization": b"Basic dXNlcjpwYXNz",
    "cookie": b"session=ours",
}


@every_server
def test_9110_7_6_1_connection_cannot_strip_what_the_app_sets(
    forwarder: Server, wire: Wire
) -> None:
    lines = [f"Connection: close, {', '.join(SET)}", f"Connection: {STRIPPING}"]
    seen = forwarded(forwarder, wire, *lines, target="/own/x")
    for name, value in (SET | ON_THE_CLIENT | {"host": wire.address.encode()}).items():
        assert seen.all(name.encode()) == [value]


FRAMINGS = {
    "length": ("Content-Length: 5", b"hello"),
    "chunked": ("Transfer-Encoding: chunked", b"5\r\nhello\r\n0\r\n\r\n"),
}
framings = pytest.mark.parametrize(("field", "body"), FRAMINGS.values(), ids=FRAMINGS)


@every_server
@framings
def test_9110_7_6_1_connection_header_cannot_strip_the_framing(
    forwarder: Server, wire: Wire, field: str, body: bytes
) -> None:
    lines = [field, "Connection: content-length, transfer-encoding"]
    seen = forwarded(forwarder, wire, *lines, method="POST", body=body)
    assert seen.body == b"hello"
    assert len(seen.framing) == 1


# RFC 9110 5: order, repetition and bytes.


@every_server
def test_9110_5_3_repeated_fields_pass_one_by_one_and_in_order(
    forwarder: Server, wire: Wire
) -> None:
    lines = ["X-Twice: 2", "Accept: b", "x-twice: 1", "Cookie: b=2", "Accept: a, c", "Cookie: a=1"]
    seen = forwarded(forwarder, wire, *lines)
    assert seen.all(b"x-twice") == [b"2", b"1"]
    assert seen.all(b"accept") == [b"b", b"a, c"]
    assert seen.all(b"cookie") == [b"b=2", b"a=1"]
    if forwarder.name != "granian":  # it keeps the order only of each name's own
        ours = [b"x-twice", b"accept", b"x-twice", b"cookie", b"accept", b"cookie"]
        assert [name for name, _ in seen.fields if name in ours] == ours


VALUES = FIELD_VALUES | {
    "only blanks": (" \t ", b""),
    "a blank before": ("\t a", b"a"),
    "a blank behind": ("a ", b"a"),
    "a tab behind": ("a\t", b"a"),
}


@every_server
@pytest.mark.parametrize(("sent", "expected"), VALUES.values(), ids=VALUES)
def test_9110_5_5_a_value_keeps_its_bytes(
    forwarder: Server, wire: Wire, sent: str, expected: bytes
) -> None:
    assert forwarded(forwarder, wire, f"X-Value: {sent}").all(b"x-value") == [expected]


@every_server
def test_a_caller_who_sends_no_fields_gets_none_invented(forwarder: Server, wire: Wire) -> None:
    seen = forwarded(forwarder, wire)
    assert sorted(name.decode() for name, _ in seen.fields) == sorted(
        ["host", "x-forwarded-prefix", *SET]
    )


@pytest.mark.parametrize("name", ["User-Agent", "Accept", "Accept-Encoding", "Accept-Language"])
def test_the_callers_own_field_passes_where_httpx_has_a_default(
    forwarder: Server, wire: Wire, name: str
) -> None:
    assert forwarded(forwarder, wire, f"{name}: theirs").all(name.lower().encode()) == [b"theirs"]


# RFC 9110 7.2, 10.1.1 and RFC 7239: of this hop, and of the caller.


def test_9110_7_2_host_is_the_upstreams(forwarder: Server, wire: Wire) -> None:
    assert forwarded(forwarder, wire).all(b"host") == [wire.address.encode()]


@every_server
def test_9110_10_1_1_expect_is_answered_and_not_forwarded(forwarder: Server, wire: Wire) -> None:
    with connect(forwarder) as connection:
        connection.sendall(head("POST", "/forward/x", "Expect: 100-continue", "Content-Length: 5"))
        assert connection.recv(65536).startswith(b"HTTP/1.1 100")
        connection.sendall(b"hello")
        assert Answer(until_the_end(connection)).status == 200
    assert b"expect" not in wire.only.names
    assert wire.only.body == b"hello"


SAID_OF_THE_CALLER = [
    "Forwarded",
    "X-Real-IP",
    "X-Forwarded-For",
    "X-Forwarded-Host",
    "X-Forwarded-Proto",
    "X-Forwarded-Port",
    "X-Forwarded-Prefix",
    "X-Forwarded-Server",
    "X-Forwarded-Ssl",
    "X-Forwarded-Scheme",
]


@pytest.mark.parametrize("name", SAID_OF_THE_CALLER)
def test_7239_what_a_caller_says_of_itself_is_replaced(
    forwarder: Server, wire: Wire, name: str
) -> None:
    seen = forwarded(forwarder, wire, f"{name}: for=10.0.0.1", f"{name.upper()}: 10.0.0.2")
    assert b"10.0.0" not in seen.head
    for field, value in SET.items():
        assert seen.all(field.encode()) == [value]


def test_7239_what_a_trusted_proxy_says_is_appended_to(forwarder: Server, wire: Wire) -> None:
    fields = [
        "X-Forwarded-For: 10.0.0.1",
        "X-Forwarded-For: 10.0.0.2",
        "Forwarded: for=10.0.0.1;proto=https",
        "X-Forwarded-Host: shop.example",
        "X-Forwarded-Proto: https",
        "X-Real-IP: 10.0.0.1",
    ]
    seen = forwarded(forwarder, wire, *fields, target="/trusted/x")
    assert seen.all(b"x-forwarded-for") == [b"10.0.0.1, 10.0.0.2, 127.0.0.1"]
    assert b", ".join(seen.all(b"forwarded")) == b"for=10.0.0.1;proto=https, for=127.0.0.1"
    assert seen.all(b"x-forwarded-host") == [b"shop.example"]
    assert seen.all(b"x-forwarded-proto") == [b"https"]
    assert seen.all(b"x-real-ip") == [b"10.0.0.1"]


def test_7239_app_without_a_trusted_proxy_sends_what_it_saw(forwarder: Server, wire: Wire) -> None:
    seen = forwarded(forwarder, wire, target="/trusted/x")
    for name, value in SET.items():
        assert seen.all(name.encode()) == [value]
    assert seen.all(b"forwarded") == []


HYPHENED = [*SAID_OF_THE_CALLER, *HOP_BY_HOP, "Content-Length", "Transfer-Encoding"]


@pytest.mark.parametrize("name", [name for name in HYPHENED if "-" in name])
@pytest.mark.parametrize("mount", ["forward", "trusted"])
def test_underscore_twin_of_a_dropped_header_is_dropped(
    forwarder: Server, wire: Wire, name: str, mount: str
) -> None:
    lines = [f"{twin}: 10.0.0.1" for twin in twins(name)]
    seen = forwarded(forwarder, wire, *lines, "x_own: 1", target=f"/{mount}/x")
    assert b"10.0.0.1" not in seen.head
    assert seen.all(b"x_own") == [b"1"]


# What the author put on the client.

THEIRS = {
    "a field": ("X-Api-Key: theirs", b"x-api-key", [b"ours"]),
    "a field's twin": ("X_Api_Key: theirs", b"x_api_key", []),
    "user-agent": ("User-Agent: theirs", b"user-agent", [b"ours"]),
    "auth": ("Authorization: theirs", b"authorization", [b"Basic dXNlcjpwYXNz"]),
    "a cookie": ("Cookie: session=theirs", b"cookie", [b"session=ours"]),
    "another cookie": ("Cookie: other=1", b"cookie", [b"other=1; session=ours"]),
    "another field": ("Accept: theirs", b"accept", [b"theirs"]),
}


@pytest.mark.parametrize(("line", "name", "expected"), THEIRS.values(), ids=THEIRS)
def test_what_is_on_the_client_wins_over_the_callers(
    forwarder: Server, wire: Wire, line: str, name: bytes, expected: list[bytes]
) -> None:
    seen = forwarded(forwarder, wire, line, target="/own/x")
    assert seen.all(name) == expected
    for field, value in ON_THE_CLIENT.items():
        assert seen.all(field.encode())[0].endswith(value)


QUERIES = {
    "none": ("", b"?key=ours"),
    "of that name": ("?key=theirs", b"?key=ours"),
    "of that name in disguise": ("?k%65y=theirs&a=1", b"?a=1&key=ours"),
    "of that name without a value": ("?key&a=%2f", b"?a=%2f&key=ours"),
    "of others": ("?b=2&a=%2f&b=1", b"?b=2&a=%2f&b=1&key=ours"),
}


@pytest.mark.parametrize(("query", "expected"), QUERIES.values(), ids=QUERIES)
def test_params_on_the_client_win_over_the_callers(
    forwarder: Server, wire: Wire, query: str, expected: bytes
) -> None:
    assert forwarded(forwarder, wire, target=f"/own/x{query}").target == b"/x" + expected


# RFC 9112 6 and 7: the framing of a request.


@every_server
@framings
def test_9112_6_a_body_keeps_its_framing(
    forwarder: Server, wire: Wire, field: str, body: bytes
) -> None:
    seen = forwarded(forwarder, wire, field, method="POST", body=body)
    name, _, value = field.lower().encode().partition(b": ")
    assert (seen.framing, seen.body) == ([(name, value)], b"hello")


CHUNKED = b'3;ext=1;b="q;"\r\nabc\r\n002\r\nde\r\n0;last\r\nX-Trailer: 1\r\nHost: evil\r\n\r\n'


@every_server
def test_9112_7_1_chunked_body_loses_extensions_and_trailers(forwarder: Server, wire: Wire) -> None:
    fields = ["Transfer-Encoding: Chunked", "Trailer: X-Trailer"]
    seen = forwarded(forwarder, wire, *fields, method="POST", body=CHUNKED)
    assert seen.framing == [(b"transfer-encoding", b"chunked")]
    assert seen.body == b"abcde"
    assert not re.search(rb"ext|last|trailer|evil|;", seen.framed.lower())


@every_server
def test_9110_6_5_1_a_trailer_does_not_become_a_field(forwarder: Server, wire: Wire) -> None:
    if forwarder.name == "uvicorn-httptools":
        pytest.xfail("uvicorn adds trailers that come with the head to the fields")
    field = "Transfer-Encoding: chunked"
    seen = forwarded(forwarder, wire, field, method="POST", body=CHUNKED)
    assert b"x-trailer" not in seen.names
    assert b"evil" not in seen.head


METHODS = ["GET", "HEAD", "DELETE", "OPTIONS", "POST", "PUT", "PATCH"]


@pytest.mark.parametrize("method", METHODS)
def test_9112_6_3_a_request_without_framing_gets_none(
    forwarder: Server, wire: Wire, method: str
) -> None:
    wire.answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
    # An empty body of a method with a body has a length, like in Go (RFC 9110 8.6).
    expected = [(b"content-length", b"0")] if method in ("POST", "PUT", "PATCH") else []
    assert forwarded(forwarder, wire, method=method).framing == expected


@pytest.mark.parametrize("method", METHODS)
def test_9110_8_6_a_length_of_nothing_is_kept(forwarder: Server, wire: Wire, method: str) -> None:
    wire.answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
    seen = forwarded(forwarder, wire, "Content-Length: 0", method=method)
    assert seen.framing == [(b"content-length", b"0")]


def test_9112_7_1_a_chunked_body_of_nothing_is_kept(forwarder: Server, wire: Wire) -> None:
    field = "Transfer-Encoding: chunked"
    seen = forwarded(forwarder, wire, field, method="POST", body=b"0\r\n\r\n")
    assert (seen.framing, seen.body) == ([(b"transfer-encoding", b"chunked")], b"")


@pytest.mark.parametrize("method", ["GET", "DELETE", "OPTIONS", "PROPFIND"])
@framings
def test_9110_9_3_1_a_body_passes_with_any_method(
    forwarder: Server, wire: Wire, method: str, field: str, body: bytes
) -> None:
    seen = forwarded(forwarder, wire, field, method=method, body=body)
    assert (seen.method, seen.body, len(seen.framing)) == (method.encode(), b"hello", 1)


@every_server
def test_9112_2_5_an_http_1_0_request_is_forwarded_as_1_1(forwarder: Server, wire: Wire) -> None:
    field = "Content-Length: 5"
    seen = forwarded(forwarder, wire, field, method="POST", body=b"hello", version="1.0")
    assert seen.line == b"POST /x HTTP/1.1"
    assert (seen.framing, seen.body) == ([(b"content-length", b"5")], b"hello")


def test_9112_3_2_request_without_host_has_no_forwarded_host(forwarder: Server, wire: Wire) -> None:
    assert send(forwarder, b"GET /forward/x HTTP/1.0\r\n\r\n").status == 200
    assert wire.only.all(b"host") == [wire.address.encode()]
    # granian gives the app an empty Host, as if the caller had sent one.
    expected = [b""] if forwarder.name == "granian" else []
    assert wire.only.all(b"x-forwarded-host") == expected


# RFC 9110 9: methods.


@every_server
def test_9110_9_3_8_trace_is_405(forwarder: Server, wire: Wire) -> None:
    answer = send(forwarder, head("TRACE", "/forward/x", "X-Secret: 1"))
    assert answer.status == 405
    assert b"X-Secret" not in answer.body
    assert wire.seen == []


@every_server
@pytest.mark.parametrize("target", ["/forward/x", "evil.example:443"], ids=["path", "authority"])
def test_9110_9_3_6_connect_reaches_no_upstream(forwarder: Server, wire: Wire, target: str) -> None:
    answer = send(forwarder, head("CONNECT", target))
    assert answer.status in (0, 400, 404, 405)  # some servers refuse it themselves
    assert wire.seen == []


# httptools does not know these, and uvicorn answers 400; hypercorn makes all upper case.
OF_NO_REGISTRY = ["BREW", "patch", "get", "x!#$%&'*+-.^_`|~1"]


@every_server
@pytest.mark.parametrize("method", ["PROPFIND", "PURGE", "M-SEARCH", *OF_NO_REGISTRY])
def test_9110_9_1_a_method_passes_as_it_is(forwarder: Server, wire: Wire, method: str) -> None:
    if forwarder.name == "uvicorn-httptools" and method in OF_NO_REGISTRY:
        assert send(forwarder, head(method, "/forward/x")).status == 400
        assert wire.seen == []
        return
    sent = method.upper() if forwarder.name.startswith("hypercorn") else method
    assert forwarded(forwarder, wire, method=method).method == sent.encode()

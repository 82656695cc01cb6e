"""HTTP/2 on either side: to an upstream, and from a caller (RFC 9113).

Hypercorn speaks it on both sides, in a thread, with a certificate that trustme made. In front of an
upstream that speaks HTTP/2 the app runs on uvicorn; callers by HTTP/2 have an upstream of sockets.
"""

import asyncio
import json
import socket
import ssl
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import h2.config
import h2.connection
import h2.events
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send

from asgi_upstream import ReverseProxy
from tests.support.flavor import client_lifespan, httpx
from tests.support.hypercorn import Certificate, Hypercorn
from tests.support.servers import Answer, Server
from tests.support.waiting import eventually
from tests.support.wire import OK, Wire, connect, head, send, until_the_end

MB = 1 << 20
OF_ONE_CONNECTION = {"connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"}
"""Illegal in HTTP/2 (RFC 9113 8.2.2)."""


# To an upstream by HTTP/2.


class HTTP2Upstream:
    """An ASGI app that counts, and does as the last part of the path says."""

    def __init__(self) -> None:
        self.scopes: list[Scope] = []
        self.bodies: list[bytes] = []
        self.left: list[str] = []
        self.sent: Counter[str] = Counter()
        self.busy = 0

    @property
    def connections(self) -> int:
        return len({tuple(scope["client"]) for scope in self.scopes})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        self.scopes.append(scope)
        self.busy += 1
        action = asyncio.ensure_future(self._act(scope, receive, send))
        try:
            await action
        finally:
            self.busy -= 1

    async def _act(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind, body = scope["path"].rsplit("/", 1)[-1], b""
        while (message := await receive())["type"] == "http.request":
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        else:
            self.left.append("in the body")
            return
        self.bodies.append(body)
        fields = [(b"x-upstream", b"yes"), (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]
        start = {"type": "http.response.start", "status": 200, "headers": fields}
        if kind == "trailers":
            start["trailers"] = True
            fields.append((b"trailer", b"x-checksum"))
        if kind == "never":
            await receive()
            return
        await send(start)
        if kind == "pour":
            await self._pour(scope, receive, send)
        elif kind == "trailers":
            await send({"type": "http.response.body", "body": b"ok", "more_body": False})
            trailers = [(b"x-checksum", b"1")]
            await send({"type": "http.response.trailers", "headers": trailers})
        else:
            if kind == "slow":
                await asyncio.sleep(0.5)
            told = {
                "version": scope["http_version"],
                "method": scope["method"],
                "target": (scope["raw_path"] + b"?" + scope["query_string"]).decode("latin-1"),
                "fields": [[n.decode("latin-1"), v.decode("latin-1")] for n, v in scope["headers"]],
                "body": body.decode("latin-1"),
            }
            await send({"type": "http.response.body", "body": json.dumps(told).encode()})

    async def _pour(self, scope: Scope, receive: Receive, send: Send) -> None:
        name, gone = scope["query_string"].decode(), asyncio.ensure_future(receive())
        while not gone.done():
            await send({"type": "http.response.body", "body": b"p" * 65536, "more_body": True})
            self.sent[name] += 65536
            await asyncio.sleep(0.001)
        self.left.append(name)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture
def speaking_h2(certificate: Certificate) -> Iterator[tuple[HTTP2Upstream, Server]]:
    """A pair for each test, for one connection carries all that a test leaves behind."""
    app = HTTP2Upstream()
    with Hypercorn(app, certificate) as upstream, pytest.MonkeyPatch.context() as patch:
        patch.setenv("UPSTREAM_CA", str(certificate.authority))
        server = Server("uvicorn-httptools", upstream.url, app="tests.support.apps.forward_app:h2")
        yield app, server
        server.stop()


@pytest.fixture
def upstream(speaking_h2: tuple[HTTP2Upstream, Server]) -> HTTP2Upstream:
    return speaking_h2[0]


@pytest.fixture
def app(speaking_h2: tuple[HTTP2Upstream, Server]) -> Server:
    return speaking_h2[1]


def told(answer: Answer) -> Any:
    assert answer.status == 200, answer.body
    return json.loads(answer.body)


def test_a_request_goes_to_the_upstream_by_http_2(upstream: HTTP2Upstream, app: Server) -> None:
    answer = send(app, head("GET", "/forward/a%2Fb//x%zz?c=%2f", "X-A: 1", "X-A: 2", "X-E:"))
    told_of = told(answer)
    assert (told_of["version"], told_of["method"]) == ("2", "GET")
    assert told_of["target"] == "/a%2Fb//x%zz?c=%2f"
    fields = [field for field in told_of["fields"] if field[0] in ("x-a", "x-e")]
    assert fields == [["x-a", "1"], ["x-a", "2"], ["x-e", ""]]
    assert answer.all(b"set-cookie") == [b"a=1", b"b=2"]
    assert answer.complete


def test_no_field_of_one_connection_goes_into_http_2(upstream: HTTP2Upstream, app: Server) -> None:
    fields = ["Connection: x-a", "X-A: 1", "Keep-Alive: timeout=5", "Proxy-Connection: close"]
    fields += ["Upgrade: other", "TE: trailers", "Trailer: x-b", "Transfer-Encoding: chunked"]
    body = b"5\r\nhello\r\n0\r\n\r\n"
    told_of = told(send(app, head("POST", "/forward/x", *fields) + body))
    names = {name for name, _ in told_of["fields"]}
    assert not names & {*OF_ONE_CONNECTION, "te", "trailer", "x-a"}
    assert (told_of["version"], told_of["body"]) == ("2", "hello")


def test_a_body_with_a_length_goes_by_http_2_and_keeps_it(
    upstream: HTTP2Upstream, app: Server
) -> None:
    for size in (0, 5, 300_000):
        request = head("POST", "/forward/x", f"Content-Length: {size}") + b"a" * size
        told_of = told(send(app, request))
        assert told_of["body"] == "a" * size
        assert ["content-length", str(size)] in told_of["fields"]


def test_many_exchanges_share_one_connection_at_a_time(
    upstream: HTTP2Upstream, app: Server
) -> None:
    told(send(app, head("GET", "/forward/x")))
    before = len(upstream.scopes)
    start = time.monotonic()
    with ThreadPoolExecutor(50) as pool:
        asked = [pool.submit(send, app, head("GET", f"/forward/slow?{n}")) for n in range(50)]
        answers = [told(future.result()) for future in asked]
    # One after the other they would take 25 s.
    assert time.monotonic() - start < 12
    assert [told_of["target"] for told_of in answers] == [f"/slow?{n}" for n in range(50)]
    assert len(upstream.scopes) - before == 50
    assert len({scope["client"] for scope in upstream.scopes[before - 1 :]}) == 1


def pouring(app: Server, name: str) -> socket.socket:
    connection = connect(app)
    connection.sendall(head("GET", f"/forward/pour?{name}"))
    return connection


def test_a_caller_who_leaves_resets_its_stream(upstream: HTTP2Upstream, app: Server) -> None:
    with pouring(app, "leaves") as leaving:
        assert leaving.recv(1000).startswith(b"HTTP/1.1 200")
    # No other request is needed, which would read what is on the way.
    eventually(lambda: upstream.left == ["leaves"])


def test_disconnect_before_the_headers_resets_the_stream(
    upstream: HTTP2Upstream, app: Server
) -> None:
    with connect(app) as leaving:
        leaving.sendall(head("GET", "/forward/never"))
        eventually(lambda: upstream.busy == 1)
    eventually(lambda: upstream.busy == 0)


def test_a_caller_who_leaves_does_not_disturb_the_others(
    upstream: HTTP2Upstream, app: Server
) -> None:
    # Hypercorn itself ends a connection now and then when streams into which it pours are reset.
    for _ in range(10):
        before = len(upstream.scopes)
        if goes_on_while_others_leave(app):
            break
    else:
        pytest.fail("a stream always ends when others are reset")
    assert told(send(app, head("GET", "/forward/x")))["version"] == "2"
    assert len(upstream.scopes) == before + 5
    assert len({tuple(scope["client"]) for scope in upstream.scopes[before:]}) == 1


def goes_on_while_others_leave(app: Server) -> bool:
    with pouring(app, "stays") as staying:
        assert staying.recv(1000).startswith(b"HTTP/1.1 200")
        for _ in range(3):
            with pouring(app, "leaves") as leaving:
                assert leaving.recv(1000).startswith(b"HTTP/1.1 200")
        got = 0
        while got < 40 * MB and (part := staying.recv(1 << 20)):  # more than any window
            got += len(part)
        return got >= 40 * MB


def test_disconnects_do_not_use_up_streams_of_a_connection(
    upstream: HTTP2Upstream, app: Server
) -> None:
    # https://github.com/encode/httpcore/issues/943: "Max outbound streams is 200, 200 open".
    for left in (0, 50, 100, 150):
        leaving = [connect(app) for _ in range(50)]
        for connection in leaving:
            connection.sendall(head("GET", "/forward/never"))
        eventually(lambda left=left: len(upstream.scopes) == left + 50)  # type: ignore[misc]
        for connection in leaving:
            connection.close()
    told(send(app, head("GET", "/forward/x")))


def test_websocket_to_an_http_2_upstream_is_502_and_is_closed(
    upstream: HTTP2Upstream, app: Server
) -> None:
    assert told(send(app, head("GET", "/forward/x")))["version"] == "2"
    fields = ["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"]
    handshake = [*fields, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]
    for name in ("one", "two"):
        with connect(app) as connection:
            connection.sendall(head("GET", f"/forward/pour?{name}", *handshake))
            assert connection.recv(1000).startswith(b"HTTP/1.1 502")
        eventually(lambda name=name: name in upstream.left)  # type: ignore[misc]
    assert told(send(app, head("GET", "/forward/x")))["version"] == "2"
    assert upstream.connections == 1
    assert "use a client without http2=True" in app.log()


def test_flow_control_holds_a_slow_reader(upstream: HTTP2Upstream, app: Server) -> None:
    told(send(app, head("GET", "/forward/x")))
    memory = app.memory()
    with pouring(app, "slow") as slow:
        assert slow.recv(1000).startswith(b"HTTP/1.1 200")
        start = time.monotonic()
        # Hypercorn takes more from its app than the window allows, so its count proves nothing: it
        # is the app that must not have taken more than a window, for as long as this goes on.
        while time.monotonic() - start < 3:
            assert app.memory() - memory < 40 * MB
            time.sleep(0.1)


def test_a_slow_reader_does_not_hold_the_others(upstream: HTTP2Upstream, app: Server) -> None:
    with pouring(app, "slow") as slow:
        assert slow.recv(1000).startswith(b"HTTP/1.1 200")
        # Each other exchange reads some of the slow one's, until its window is used up.
        for _ in range(60):
            with connect(app) as other:
                other.settimeout(40)
                other.sendall(head("GET", "/forward/x"))
                assert other.recv(65536).startswith(b"HTTP/1.1 200")


def test_an_upload_that_its_caller_tears_is_reset_and_not_ended(
    upstream: HTTP2Upstream, app: Server
) -> None:
    with connect(app) as connection:
        connection.sendall(head("POST", "/forward/x", "Content-Length: 500") + b"a" * 100)
        eventually(lambda: upstream.busy == 1)
    eventually(lambda: upstream.left == ["in the body"])
    assert upstream.bodies == []


def test_trailers_of_an_upstream_by_http_2_are_dropped(
    upstream: HTTP2Upstream, app: Server
) -> None:
    with connect(app) as connection:
        connection.sendall(head("GET", "/forward/trailers"))
        data = until_the_end(connection)
    answer = Answer(data)
    assert (answer.status, answer.body, answer.complete) == (200, b"ok", True)
    assert b"x-checksum" not in data


# From callers by HTTP/2.


@pytest.fixture(scope="session")
def wire() -> Iterator[Wire]:
    with Wire() as wire:
        yield wire


@pytest.fixture(scope="session")
def front(wire: Wire, certificate: Certificate) -> Iterator[Hypercorn]:
    app = Starlette(
        lifespan=client_lifespan(base_url=wire.url, trust_env=False),
        routes=[Mount("/forward", ReverseProxy())],
    )
    with Hypercorn(app, certificate) as front:
        yield front


@pytest.fixture
def caller(front: Hypercorn, certificate: Certificate, wire: Wire) -> Iterator[httpx.Client]:
    wire.reset()
    with httpx.Client(
        http2=True, verify=certificate.trust, base_url=front.url, trust_env=False, timeout=10
    ) as caller:
        yield caller
    eventually(lambda: wire.busy == 0)


class Stream:
    """One request by HTTP/2, of any fields, and what came of it."""

    def __init__(self, front: Hypercorn, certificate: Certificate) -> None:
        trust = ssl.create_default_context(cafile=str(certificate.authority))
        trust.set_alpn_protocols(["h2"])
        raw = socket.create_connection(("127.0.0.1", front.port), timeout=60)
        self._socket = trust.wrap_socket(raw, server_hostname="localhost")
        # It says what a lenient library would hide, and sends what a strict one would not.
        self._h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(validate_outbound_headers=False, header_encoding=False)
        )
        self._h2.initiate_connection()
        self.fields: list[tuple[bytes, bytes]] = []
        self.trailers: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.reset = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()

    def ask(
        self,
        *fields: tuple[str, str],
        method: str = "GET",
        body: bytes | None = None,
        trailers: list[tuple[str, str]] | None = None,
    ) -> Self:
        pseudo = [(":method", method), (":scheme", "https"), (":authority", "app.example")]
        pseudo.append((":path", "/forward/x"))
        self._h2.send_headers(1, [*pseudo, *fields], end_stream=body is None)
        if body is not None:
            self._h2.send_data(1, body, end_stream=trailers is None)
        if trailers is not None:
            self._h2.send_headers(1, trailers, end_stream=True)
        self._flush()
        while not self._is_over():
            pass
        return self

    def _flush(self) -> None:
        self._socket.sendall(self._h2.data_to_send())

    def _is_over(self) -> bool:
        data = self._socket.recv(65536)
        events = self._h2.receive_data(data) if data else []
        for event in events:
            if isinstance(event, h2.events.ResponseReceived):
                self.fields = event.headers
            elif isinstance(event, h2.events.TrailersReceived):
                self.trailers = event.headers
            elif isinstance(event, h2.events.DataReceived):
                self.body += event.data or b""
            elif isinstance(event, h2.events.StreamReset):
                self.reset = True
        self._flush()
        over = (h2.events.StreamEnded, h2.events.StreamReset, h2.events.ConnectionTerminated)
        return not data or any(isinstance(event, over) for event in events)


@pytest.fixture
def stream(front: Hypercorn, certificate: Certificate, wire: Wire) -> Iterator[Stream]:
    wire.reset()
    with Stream(front, certificate) as stream:
        yield stream
    eventually(lambda: wire.busy == 0)


def test_a_caller_by_http_2_is_answered_by_an_upstream_of_http_1(
    caller: httpx.Client, wire: Wire
) -> None:
    answer = caller.get("/forward/a%2Fb?c", headers=[("x-a", "1"), ("x-a", "2")])
    assert (answer.http_version, answer.status_code, answer.text) == ("HTTP/2", 200, "ok")
    assert wire.only.line == b"GET /a%2Fb?c HTTP/1.1"
    assert wire.only.all(b"x-a") == [b"1", b"2"]
    assert wire.only.all(b"host") == [wire.address.encode()]
    assert wire.only.all(b"x-forwarded-proto") == [b"https"]
    assert not [name for name in wire.only.names if name.startswith(b":")]


def test_9113_8_3_1_the_authority_is_the_forwarded_host(stream: Stream, wire: Wire) -> None:
    assert stream.ask().body == b"ok"
    assert wire.only.all(b"x-forwarded-host") == [b"app.example"]
    assert wire.only.all(b"host") == [wire.address.encode()]


def test_9113_8_2_2_connection_header_does_not_reach_caller(stream: Stream, wire: Wire) -> None:
    lines = b"Connection: x-a, keep-alive\r\nX-A: 1\r\nKeep-Alive: timeout=5\r\nTE: trailers\r\n"
    lines += b"Proxy-Connection: close\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked\r\n"
    wire.answer = b"HTTP/1.1 200 OK\r\nX-B: 1\r\n" + lines + b"\r\n2\r\nok\r\n0\r\n\r\n"
    stream.ask()
    names = {name.decode() for name, _ in stream.fields}
    assert not names & {*OF_ONE_CONNECTION, "te", "x-a"}
    assert "x-b" in names
    assert all(name == name.lower() for name in names)
    assert (stream.body, stream.reset) == (b"ok", False)


@pytest.mark.parametrize("size", [0, 5, 300_000])
def test_a_body_of_known_length_arrives_with_that_length_only(
    caller: httpx.Client, wire: Wire, size: int
) -> None:
    answer = caller.post("/forward/x", content=b"a" * size)
    assert answer.status_code == 200
    assert wire.only.framing == [(b"content-length", b"%d" % size)]
    assert wire.only.body == b"a" * size


@pytest.mark.parametrize("size", [0, 5, 300_000])
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "PROPFIND"])
def test_a_body_of_unknown_length_arrives_chunked_only(
    caller: httpx.Client, wire: Wire, method: str, size: int
) -> None:
    parts = iter([b"a" * size])
    answer = caller.request(method, "/forward/x", content=parts)
    assert (answer.http_version, answer.status_code) == ("HTTP/2", 200)
    if size:
        assert wire.only.framing == [(b"transfer-encoding", b"chunked")]
    else:  # The first message is complete.
        assert wire.only.framing in ([], [(b"content-length", b"0")])
    assert wire.only.body == b"a" * size


@pytest.mark.parametrize("method", ["GET", "DELETE", "HEAD", "OPTIONS"])
def test_a_request_without_a_body_gets_no_framing(
    caller: httpx.Client, wire: Wire, method: str
) -> None:
    if method == "HEAD":
        wire.answer = OK.removesuffix(b"ok")
    assert caller.request(method, "/forward/x").status_code == 200
    assert wire.only.framing == []


@pytest.mark.parametrize("method", ["GET", "DELETE", "OPTIONS"])
def test_body_of_unknown_length_passes_with_any_method(
    stream: Stream, wire: Wire, method: str
) -> None:
    assert stream.ask(method=method, body=b"hello").body == b"ok"
    assert wire.only.framing
    assert wire.only.body == b"hello"


@pytest.mark.parametrize("method", ["GET", "DELETE", "OPTIONS"])
def test_a_body_of_known_length_passes_with_any_method(
    stream: Stream, wire: Wire, method: str
) -> None:
    assert stream.ask(("content-length", "5"), method=method, body=b"hello").body == b"ok"
    assert (wire.only.framing, wire.only.body) == ([(b"content-length", b"5")], b"hello")


def test_9113_8_2_2_te_does_not_reach_the_upstream(stream: Stream, wire: Wire) -> None:
    assert stream.ask(("te", "trailers"), ("x-a", "1")).body == b"ok"
    assert wire.only.all(b"te") == []
    assert wire.only.all(b"x-a") == [b"1"]


@pytest.mark.parametrize("field", ["connection", "keep-alive", "transfer-encoding", "upgrade"])
def test_9113_8_2_2_connection_header_does_not_reach_upstream(
    stream: Stream, wire: Wire, field: str
) -> None:
    stream.ask((field, "chunked"), method="POST", body=b"hello")
    for seen in wire.seen:  # where the server does not refuse it, as it should
        assert field == "transfer-encoding" or field.encode() not in seen.names
        assert len(seen.framing) == 1
        assert seen.body == b"hello"


def test_9113_8_2_3_crumbs_of_a_cookie_are_joined(stream: Stream, wire: Wire) -> None:
    stream.ask(("cookie", "a=1"), ("x-a", "1"), ("cookie", "b=2"), ("cookie", "c=3; d=4"))
    assert wire.only.all(b"cookie") == [b"a=1; b=2; c=3; d=4"]


BREAKS = ["a\r\nx-evil: 1", "a\nx-evil: 1", "a\rb", "a\0b", "a\r\n\r\nGET /smuggled HTTP/1.1\r\n"]


@pytest.mark.parametrize("value", BREAKS)
def test_9113_8_2_1_line_break_in_a_header_is_not_forwarded(
    stream: Stream, wire: Wire, value: str
) -> None:
    stream.ask(("x-a", value), method="POST", body=b"hello")
    assert wire.seen == []
    assert stream.reset or not stream.fields or stream.fields[0] == (b":status", b"400")


@pytest.mark.parametrize(
    ("length", "body"), [("3", b"hello"), ("9", b"hello"), ("-5", b"hello"), ("5, 5", b"hello")]
)
def test_9113_8_1_1_wrong_length_becomes_no_whole_request(
    stream: Stream, wire: Wire, length: str, body: bytes
) -> None:
    stream.ask(("content-length", length), method="POST", body=body)
    eventually(lambda: wire.busy == 0)
    for seen in wire.seen:
        assert not seen.whole or seen.body == body
        assert b"smuggled" not in seen.head


def test_upstream_trailers_are_dropped_for_an_http_2_caller(stream: Stream, wire: Wire) -> None:
    wire.answer = b"HTTP/1.1 200 OK\r\nTrailer: X-Checksum\r\nTransfer-Encoding: chunked\r\n\r\n"
    wire.answer += b"2\r\nok\r\n0\r\nX-Checksum: 1\r\n\r\n"
    stream.ask(("te", "trailers"))
    assert (stream.body, stream.trailers) == (b"ok", [])
    assert b"trailer" not in {name for name, _ in stream.fields}


def test_trailers_of_a_caller_by_http_2_are_dropped(stream: Stream, wire: Wire) -> None:
    stream.ask(method="POST", body=b"hello", trailers=[("x-checksum", "1")])
    assert stream.body == b"ok"
    assert (wire.only.body, b"x-checksum" in wire.only.names) == (b"hello", False)
    assert b"x-checksum" not in wire.only.framed


def test_http_2_caller_that_resets_its_upload_aborts_upstream(
    front: Hypercorn, certificate: Certificate, wire: Wire
) -> None:
    wire.reset()

    def parts() -> Iterator[bytes]:
        yield b"hello"
        eventually(lambda: bool(wire.seen) and b"hello" in wire.only.framed)
        raise ZeroDivisionError

    with (
        httpx.Client(
            http2=True, verify=certificate.trust, base_url=front.url, trust_env=False
        ) as caller,
        pytest.raises(ZeroDivisionError),
    ):
        caller.post("/forward/x", content=parts())
    eventually(lambda: wire.only.torn)
    assert b"0\r\n\r\n" not in wire.only.framed

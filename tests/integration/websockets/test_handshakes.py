"""Handshakes, refusals and what is left of them, with both ends as raw sockets (RFC 6455)."""

import time

import pytest

from tests.support.server_choice import every_server
from tests.support.servers import Server
from tests.support.waiting import eventually
from tests.support.websocket_servers import start, websocket_servers
from tests.support.websocket_traffic import Doing
from tests.support.websocket_wire import (
    BINARY,
    CLOSE,
    KEY,
    TEXT,
    End,
    Frame,
    Listener,
    accept_of,
    closing,
)

pytestmark = websocket_servers


# The handshake: 4, and what crosses as for any request.


def test_a_handshake_crosses_as_a_request_does(server: Server, listener: Listener) -> None:
    caller, upstream = listener.open(
        server,
        "/forward/a%2Fb/%7e?q=1&q=%20",
        "Origin: https://shop.example",
        "Cookie: session=1",
        "X-Forwarded-For: 6.6.6.6",
        "X-Forwarded-Host: evil",
        "Forwarded: for=6.6.6.6",
        "Authorization: Bearer of news",
        "X-Secret: 1",
        answer=("Set-Cookie: a=1", "Set-Cookie: b=2", "X-Up: yes", "Server: theirs"),
    )
    assert upstream.line == b"GET /a%2Fb/%7e?q=1&q=%20 HTTP/1.1"
    assert upstream.all(b"host") == [listener.address]
    assert upstream.all(b"origin") == [b"https://shop.example"]
    assert upstream.all(b"cookie") == [b"session=1"]
    assert upstream.all(b"authorization") == [b"Bearer of news"]
    assert upstream.all(b"x-forwarded-for") == [b"127.0.0.1"]
    assert upstream.all(b"x-forwarded-host") == [b"app"]
    assert upstream.all(b"x-forwarded-proto") == [b"http"]
    assert upstream.all(b"forwarded") == []
    if server.name != "granian":  # it drops the fields of an acceptance
        assert caller.all(b"set-cookie") == [b"a=1", b"b=2"]
        assert caller.all(b"x-up") == [b"yes"]
    assert b"theirs" not in caller.all(b"server")
    _, upstream = listener.open(server)
    assert upstream.all(b"cookie") == []  # which another caller was given


def test_the_fields_of_the_handshake_belong_to_each_hop(server: Server, listener: Listener) -> None:
    caller, upstream = listener.open(
        server,
        "/forward/x",
        "Sec-WebSocket-Extensions: permessage-deflate",
        "Keep-Alive: 1",
    )
    (key,) = upstream.all(b"sec-websocket-key")
    assert key != KEY.encode()
    assert upstream.all(b"sec-websocket-version") == [b"13"]
    assert upstream.all(b"sec-websocket-extensions") == []
    assert upstream.all(b"keep-alive") == []
    assert [value.lower() for value in upstream.all(b"upgrade")] == [b"websocket"]
    assert [value.lower() for value in upstream.all(b"connection")] == [b"upgrade"]
    assert caller.all(b"sec-websocket-accept") == [accept_of(KEY.encode())]


def test_what_the_author_put_on_the_client_or_the_app_wins(
    server: Server, listener: Listener
) -> None:
    fields = ("x-tenant: own", "X-Api-Key: theirs", "X_Api_Key: theirs")
    _, upstream = listener.open(server, "/by-tenant/x", *fields)
    assert upstream.line == b"GET /v1/x HTTP/1.1"
    assert upstream.all(b"x-api-key") == [b"ours"]
    assert upstream.all(b"x_api_key") == []
    _, upstream = listener.open(server, "/sets/x", "X-Set: theirs", "X-Removed: 1")
    assert (upstream.all(b"x-set"), upstream.all(b"x-removed")) == ([b"by the app"], [])


def test_another_request_of_on_request_is_sent_as_a_handshake(
    server: Server, listener: Listener
) -> None:
    caller, upstream = listener.open(server, "/replaces/x")
    assert upstream.line == b"GET /instead HTTP/1.1"
    upstream.send(TEXT, b"here")
    assert caller.message() == Frame(TEXT, b"here")


def test_subprotocols_are_offered_and_chosen_from_end_to_end(
    server: Server, listener: Listener
) -> None:
    offer = "Sec-WebSocket-Protocol: one, two"
    chosen = ("Sec-WebSocket-Protocol: two",)
    caller, upstream = listener.open(server, "/forward/x", offer, answer=chosen)
    assert upstream.all(b"sec-websocket-protocol") == [b"one, two"]
    assert caller.all(b"sec-websocket-protocol") == [b"two"]
    caller, upstream = listener.open(server, "/forward/x", offer)
    assert caller.all(b"sec-websocket-protocol") == []
    caller, upstream = listener.open(server)
    assert upstream.all(b"sec-websocket-protocol") == []


def test_what_comes_with_the_101_is_not_lost(server: Server, listener: Listener) -> None:
    caller = listener.call(server)
    upstream = listener.accept()
    accept = accept_of(upstream.all(b"sec-websocket-key")[0])
    head = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\nHTTP/1.1 101 Go\r\n"
    head += b"Upgrade: websocket\r\nConnection: x-one, Upgrade\r\nX-One: 1\r\nContent-Length: 9\r\n"
    head += b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    upstream.socket.sendall(head + upstream.framed(TEXT, b"at once"))
    caller.read_head()
    assert caller.message() == Frame(TEXT, b"at once")
    assert caller.all(b"content-length") == caller.all(b"x-one") == []


def test_a_slow_handshake_loses_nothing(server: Server, listener: Listener) -> None:
    caller = listener.call(server)
    upstream = listener.accept()
    time.sleep(0.5)  # until a caller would be watched
    upstream.answer()
    caller.read_head()
    for number in range(3):
        caller.send(TEXT, b"%d" % number)
    assert [upstream.message().payload for _ in range(3)] == [b"0", b"1", b"2"]


@pytest.mark.parametrize(
    "answer",
    [
        ("Sec-WebSocket-Accept: c29tZXRoaW5nIGVsc2UgYWx0b2dldGg=",),
        ("Sec-WebSocket-Protocol: not-offered",),
        ("Sec-WebSocket-Extensions: permessage-deflate",),
        ("Upgrade: h2c",),
    ],
    ids=["accept", "subprotocol", "extension", "upgrade"],
)
def test_a_101_that_answers_something_else_is_502(
    server: Server, listener: Listener, answer: tuple[str, ...]
) -> None:
    caller = listener.call(server)
    upstream = listener.accept()
    upstream.answer(*answer)
    caller.read_head()
    assert caller.status == 502
    assert upstream.ends()


@pytest.mark.parametrize("status", ["200 OK", "302 Found", "401 Who", "426 Upgrade", "503 No"])
def test_upstream_refusal_keeps_status_headers_and_body(
    server: Server, listener: Listener, status: str
) -> None:
    caller = listener.call(server)
    upstream = listener.accept()
    lines = [f"HTTP/1.1 {status}", "Location: /there", "X-Why: because"]
    lines += ["WWW-Authenticate: Basic", "Sec-WebSocket-Version: 8"]
    if status == "503 No":
        lines += ["Transfer-Encoding: chunked", "", "4", "no!\n", "0", "", ""]
    else:
        lines += ["Content-Length: 4", "", "no!\n"]
    upstream.socket.sendall("\r\n".join(lines).encode())
    caller.read_head()
    assert caller.status == int(status[:3])
    assert caller.all(b"x-why") == [b"because"]
    assert caller.all(b"location") == [b"/there"]
    assert caller.all(b"www-authenticate") == [b"Basic"]
    assert caller.all(b"sec-websocket-version") == []
    assert caller._exactly(4) == b"no!\n"


def test_handshake_failure_has_the_status_it_has_elsewhere(
    server: Server, listener: Listener
) -> None:
    def status(tenant: str) -> tuple[int, End]:
        caller = listener.call(server, "/by-tenant/x", f"x-tenant: {tenant}")
        caller.read_head()
        return caller.status, caller

    assert status("nowhere")[0] == 502
    assert status("hasty")[0] == 504  # nobody answers
    listener.accept()
    listener.open(server, "/by-tenant/x", "x-tenant: narrow")
    number, caller = status("narrow")
    assert (number, caller.all(b"retry-after")) == (503, [b"1"])


def test_the_place_in_the_pool_is_free_again_however_it_ended(
    server: Server, listener: Listener
) -> None:
    narrow = ("/by-tenant/x", "x-tenant: narrow")
    for how in ("closed", "caller reset", "upstream reset", "refused"):
        caller, upstream = listener.open(server, *narrow)
        if how == "refused":
            caller.socket.close()
            upstream.message()
            upstream.socket.close()
            caller = listener.call(server, *narrow)
            upstream = listener.accept()
            upstream.answer("Content-Length: 0", "Connection: close", status="401 No")
            caller.read_head()
            assert caller.status == 401
        elif how == "closed":
            upstream.send(*closing(1000)[:2])
            assert caller.message() == closing(1000)
        elif how == "caller reset":
            caller.reset()
            assert upstream.message() == closing(1001)
        else:
            upstream.reset()
            assert caller.message().opcode == CLOSE
        upstream.socket.close()
    listener.open(server, *narrow)


def test_a_caller_who_leaves_in_the_body_of_a_refusal_ends_it(
    server: Server, listener: Listener
) -> None:
    before = len(server.state()["records"])
    caller = listener.call(server)
    upstream = listener.accept()
    upstream.socket.sendall(b"HTTP/1.1 401 No\r\nContent-Length: 100\r\n\r\nwh")
    eventually(lambda: server.state()["open"] == 1)
    caller.reset()
    if server.name == "granian":  # it tells no app of that
        upstream.socket.close()
    else:
        assert upstream.ends()
        eventually(lambda: len(server.state()["records"]) > before)
        assert server.state()["records"][-1][:2] == ["caller_disconnected_before_headers", 401]


@pytest.mark.parametrize(
    "target", ["/forward/../x", "/forward/%2e%2e/x", "/forward/..%2fx", "/forward/..%5cx"]
)
def test_a_path_with_a_dot_segment_is_400_and_never_sent(
    server: Server, listener: Listener, target: str
) -> None:
    caller = listener.call(server, target)
    caller.read_head()
    assert caller.status == 400
    assert listener.is_quiet()


def test_origin_check_in_on_request_is_403_and_sends_nothing(
    server: Server, listener: Listener
) -> None:
    for origin in ((), ("Origin: http://evil.example",)):
        caller = listener.call(server, "/guarded/x", *origin)
        caller.read_head()
        assert caller.status == 403
    assert listener.is_quiet()
    listener.open(server, "/guarded/x", "Origin: http://app")


# What is left of it.


def test_each_is_one_exchange_with_one_record(server: Server, listener: Listener) -> None:
    def last() -> list[object]:
        eventually(lambda: len(server.state()["records"]) > before)
        record: list[object] = server.state()["records"][-1]
        return record

    before = len(server.state()["records"])
    caller, upstream = listener.open(server)
    assert server.state()["open"] == 1
    caller.send(TEXT, "fünf!".encode())
    upstream.message()
    upstream.send(BINARY, b"123")
    caller.message()
    upstream.send(*closing(1000)[:2])
    assert last() == ["completed", 101, 6, 3, True]
    before += 1
    caller, upstream = listener.open(server)
    caller.reset()
    upstream.message()
    upstream.socket.close()
    assert last() == ["caller_disconnected_mid_body", 101, 0, 0, True]
    before += 1
    caller, upstream = listener.open(server)
    upstream.reset()
    assert last() == ["body_failed", 101, 0, 0, True]
    before += 1
    caller = listener.call(server)
    upstream = listener.accept()
    upstream.answer(status="403 No")
    upstream.socket.close()
    assert last() == ["completed", 403, 0, 0, True]
    if server.name == "granian":
        return  # see above
    before += 1
    caller = listener.call(server)
    upstream = listener.accept()
    caller.reset()
    assert last() == ["caller_disconnected_before_headers", None, 0, 0, True]


def test_fifty_at_once_who_all_leave_leave_nothing(server: Server, listener: Listener) -> None:
    links = [listener.open(server) for _ in range(50)]
    assert server.state()["open"] == 50
    for number, (caller, upstream) in enumerate(links):
        [caller.reset, upstream.reset, caller.socket.close, upstream.socket.close][number % 4]()
    eventually(lambda: bool(server.state()["open"] == 0))
    listener.hang_up()
    eventually(lambda: listener.connections() == 0)


@every_server
def test_a_server_that_stops_closes_the_upstream(listener: Listener, server_name: str) -> None:
    server = start(server_name, listener)
    try:
        _, upstream = listener.open(server)
        stopping = Doing(server.stop)
        upstream.drain()
        stopping.finish()
    finally:
        server.process.kill()
        listener.hang_up()

"""WebSockets relayed, on every server and transport, with both ends as raw sockets (RFC 6455)."""

import time
from collections.abc import Iterator

import pytest

from tests.support.server_choice import ALL_SERVERS, every_server
from tests.support.servers import COMMANDS, NOISE, Server, eventually
from tests.support.websocket_wire import (
    BINARY,
    CLOSE,
    CONTINUATION,
    KEY,
    PING,
    PONG,
    TEXT,
    Doing,
    End,
    Frame,
    Listener,
    accept_of,
    closing,
)

# Each server has an implementation of its own. `make test` runs most of this on one.
pytestmark = pytest.mark.servers(*ALL_SERVERS, fast=("uvicorn-httptools+asyncio",))
APP = "tests.support.apps.websocket_app:app"
MB = 1 << 20
# uvicorn has two implementations of WebSockets.
FLAVOURS = {
    "uvicorn-h11": ["--ws", "wsproto"],
    "uvicorn-httptools": ["--ws", "websockets-sansio"],
}


@pytest.fixture(scope="module")
def listener() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.close()


def start(name: str, listener: Listener) -> Server:
    command = name.partition("+")[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(COMMANDS, command, [*COMMANDS[command], *FLAVOURS.get(command, [])])
        return Server(name, listener.url, app=APP)


@pytest.fixture(scope="module")
def running(server_name: str, listener: Listener) -> Iterator[Server]:
    server = start(server_name, listener)
    yield server
    server.stop()


@pytest.fixture
def server(running: Server, listener: Listener) -> Iterator[Server]:
    """The app on one server. No test may leave an exchange or a task, or noise in the log."""
    before, tasks = len(running.log()), running.state()["tasks"]
    yield running
    listener.hang_up()
    eventually(lambda: running.state()["open"] == 0, 50)
    eventually(lambda: running.state()["tasks"] <= tasks, 50)
    for noise in (*NOISE, "asgi_upstream/_websockets/relay.py"):  # as in a traceback
        assert noise not in running.log()[before:]


def is_hypercorn(server: Server) -> bool:
    return server.name.startswith("hypercorn")


# Messages: RFC 6455 5.4 to 5.6, the cases of the Autobahn test suite's chapters 1, 5, 6 and 9.

MESSAGES: dict[str, tuple[list[Frame], Frame]] = {
    f"{kind} of {size}": ([Frame(opcode, b"x" * size)], Frame(opcode, b"x" * size))
    for kind, opcode in (("text", TEXT), ("binary", BINARY))
    for size in (0, 1, 125, 126, 127, 65535, 65536, MB)
} | {
    "text in many scripts": (
        [Frame(TEXT, "κόσμε, 日本 🎉\0".encode())],
        Frame(TEXT, "κόσμε, 日本 🎉\0".encode()),
    ),
    "any bytes": ([Frame(BINARY, bytes(range(256)))], Frame(BINARY, bytes(range(256)))),
    "two fragments": (
        [Frame(TEXT, b"one ", False), Frame(CONTINUATION, b"two")],
        Frame(TEXT, b"one two"),
    ),
    "fragments, some empty": (
        [
            Frame(BINARY, b"", False),
            Frame(CONTINUATION, b"a", False),
            Frame(CONTINUATION, b"", False),
            Frame(CONTINUATION, b""),
        ],
        Frame(BINARY, b"a"),
    ),
    "a character cut in two": (
        [Frame(TEXT, "é".encode()[:1], False), Frame(CONTINUATION, "é".encode()[1:])],
        Frame(TEXT, "é".encode()),
    ),
    "pings and pongs between fragments": (
        [
            Frame(TEXT, b"a", False),
            Frame(PING, b"p"),
            Frame(CONTINUATION, b"b", False),
            Frame(PONG, b"nobody asked"),
            Frame(CONTINUATION, b"c"),
        ],
        Frame(TEXT, b"abc"),
    ),
    "line ends in fragments": (
        [Frame(TEXT, b"a\r", False), Frame(CONTINUATION, b"\nb\rc\n")],
        Frame(TEXT, b"a\r\nb\rc\n"),
    ),
    "a thousand fragments": (
        [
            Frame(BINARY, b"0123456789", False),
            *[Frame(CONTINUATION, b"0123456789", False)] * 998,
            Frame(CONTINUATION, b"0123456789"),
        ],
        Frame(BINARY, b"0123456789" * 1000),
    ),
}


def say(end: End, frames: list[Frame]) -> Doing:
    return Doing(
        lambda: end.socket.sendall(
            b"".join(end.framed(f.opcode, f.payload, fin=f.fin) for f in frames)
        )
    )


def hear(end: End) -> Frame:
    """The next message, past the answers to one's own pings."""
    while (frame := end.message()).opcode == PONG:
        pass
    return frame


def test_messages_cross_in_both_directions_as_they_are(server: Server, listener: Listener) -> None:
    caller, upstream = listener.open(server)
    for name, (frames, message) in MESSAGES.items():
        for sender, receiver in ((caller, upstream), (upstream, caller)):
            sending = say(sender, frames)
            assert hear(receiver) == message, name
            sending.finish()


@every_server
def test_messages_keep_their_order_and_their_number(server: Server, listener: Listener) -> None:
    caller, upstream = listener.open(server)
    frames = [Frame(TEXT, b"%d" % number) for number in range(2000)]
    for sender, receiver in ((caller, upstream), (upstream, caller)):
        sending = say(sender, frames)
        assert [receiver.message() for _ in frames] == frames
        sending.finish()


@pytest.mark.parametrize("opcode", [TEXT, BINARY], ids=["text", "binary"])
def test_16_mb_cross_in_both_directions(server: Server, listener: Listener, opcode: int) -> None:
    payload = bytes(range(65, 91)) * (16 * MB // 26) + b"x" * (16 * MB % 26)
    caller, upstream = listener.open(server)
    for sender, receiver in ((caller, upstream), (upstream, caller)):
        sending = say(sender, [Frame(opcode, payload)])
        frame = receiver.message()
        assert (frame.opcode, len(frame.payload)) == (opcode, 16 * MB)
        assert frame.payload == payload
        sending.finish()


@pytest.mark.parametrize("fragments", [1, 2])
def test_message_past_the_bound_closes_both_sides_with_1009(
    server: Server, listener: Listener, fragments: int
) -> None:
    caller, upstream = listener.open(server, "/bounded/x")
    upstream.send(TEXT, b"x" * 1000)
    assert caller.message() == Frame(TEXT, b"x" * 1000)
    if fragments == 1:
        upstream.send(TEXT, b"x" * 1001)
    else:
        upstream.send(TEXT, b"x" * 700, fin=False)
        upstream.send(CONTINUATION, b"x" * 700, fin=False)
    close = upstream.message()
    assert (close.opcode, int.from_bytes(close.payload[:2])) == (CLOSE, 1009)
    upstream.send(*closing(1009)[:2])
    assert upstream.ends()
    assert caller.message() == closing(1009, "The upstream's response is too large")


# Pings and pongs: 5.5.2, 5.5.3, Autobahn's chapter 2. Each hop has its own.


def test_a_ping_is_answered_by_the_hop_and_goes_no_further(
    server: Server, listener: Listener
) -> None:
    caller, upstream = listener.open(server)
    for end, other in ((caller, upstream), (upstream, caller)):
        for number in range(10):
            end.send(PING, b"%d" % number)
        assert [end.frame() for _ in range(10)] == [Frame(PONG, b"%d" % n) for n in range(10)]
        end.send(PING, b"x" * 125)
        assert end.frame() == Frame(PONG, b"x" * 125)
        end.send(PONG, b"nobody asked")
        end.send(TEXT, b"behind")
        assert other.frame() == Frame(TEXT, b"behind")


def test_a_silent_upstream_is_pinged_and_lives_while_it_answers(
    server: Server, listener: Listener
) -> None:
    caller, upstream = listener.open(server, "/pinged")
    assert upstream.line == b"GET /elsewhere HTTP/1.1"
    for _ in range(3):
        frame = upstream.frame()
        assert frame.opcode == PING
        upstream.send(PONG, frame.payload)
    upstream.send(TEXT, b"here")
    assert caller.message() == Frame(TEXT, b"here")


def test_an_upstream_that_answers_no_ping_is_gone(server: Server, listener: Listener) -> None:
    caller, upstream = listener.open(server, "/pinged")
    assert upstream.frame().opcode == PING
    assert upstream.frame().opcode == CLOSE
    upstream.socket.close()
    assert caller.message() == closing(1011, "The upstream did not answer in time")


# Closing: 7, Autobahn's chapter 7.


CODES = [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 3000, 3999, 4000, 4999]


@pytest.mark.parametrize("code", CODES)
def test_upstream_close_reaches_the_caller_with_code_and_reason(
    server: Server, listener: Listener, code: int
) -> None:
    caller, upstream = listener.open(server)
    upstream.send(TEXT, b"last words")
    upstream.send(*closing(code, "so long, ünd thanks")[:2])
    assert upstream.frame() == closing(code, "so long, ünd thanks")
    assert upstream.ends()
    assert caller.message() == Frame(TEXT, b"last words")
    assert caller.message() == closing(code, "so long, ünd thanks")


@pytest.mark.parametrize("code", CODES)
def test_caller_close_reaches_the_upstream_with_code_and_reason(
    server: Server, listener: Listener, code: int
) -> None:
    caller, upstream = listener.open(server)
    caller.send(TEXT, b"last words")
    caller.send(*closing(code, "so long")[:2])
    assert upstream.message() == Frame(TEXT, b"last words")
    expected = closing(code, "so long")
    if is_hypercorn(server):  # it tells no app of codes
        expected = closing(1001)
    elif server.name == "granian":  # nor this of reasons
        expected = closing(code)
    assert upstream.message() == expected
    upstream.send(*expected[:2])
    assert upstream.ends()
    assert caller.message().opcode == CLOSE


LONGEST = "ü" * 61 + "!"  # 123 bytes: the rest of 125 is the code


def test_the_longest_reason_crosses_both_ways(server: Server, listener: Listener) -> None:
    caller, upstream = listener.open(server)
    upstream.send(*closing(4000, LONGEST)[:2])
    assert caller.message() == closing(4000, LONGEST)
    if server.name.startswith("uvicorn"):  # others tell of no reason
        caller, upstream = listener.open(server)
        caller.send(*closing(4000, LONGEST)[:2])
        assert upstream.message() == closing(4000, LONGEST)


def test_a_close_may_come_in_the_middle_of_a_message(server: Server, listener: Listener) -> None:
    caller, upstream = listener.open(server)
    upstream.send(TEXT, b"half", fin=False)
    upstream.send(*closing(4000)[:2])
    assert caller.message() == closing(4000)
    caller, upstream = listener.open(server)
    caller.send(TEXT, b"half", fin=False)
    caller.send(*closing(4000)[:2])
    assert upstream.message().opcode == CLOSE  # with 1002 by servers that do not like it


@pytest.mark.parametrize("length", [b"\0\0\x01\0\0\0\0\0", b"\x40" + bytes(7), b"\xff" + bytes(7)])
def test_a_frame_that_declares_too_much_is_refused_at_its_head(
    server: Server, listener: Listener, length: bytes
) -> None:
    caller, upstream = listener.open(server)
    upstream.socket.sendall(b"\x82\x7f" + length)
    close = upstream.message()
    assert (close.opcode, int.from_bytes(close.payload[:2])) == (CLOSE, 1009)
    assert caller.message() == closing(1009, "The upstream's response is too large")


def test_both_may_close_at_once(server: Server, listener: Listener) -> None:
    caller, upstream = listener.open(server)
    caller.send(*closing(4000)[:2])
    upstream.send(*closing(4001)[:2])
    for end in (caller, upstream):
        assert end.message().opcode == CLOSE
        end.socket.close()


def test_a_close_without_a_code(server: Server, listener: Listener) -> None:
    caller, upstream = listener.open(server)
    upstream.send(CLOSE)
    assert upstream.frame() == Frame(CLOSE, b"")
    assert caller.message() == closing(1000)  # ASGI has no other way to say it
    caller, upstream = listener.open(server)
    caller.send(CLOSE)
    expected = Frame(CLOSE, b"") if server.name.startswith("uvicorn") else closing(1001)
    assert upstream.message() == expected


def test_what_comes_behind_a_close_is_not_relayed(server: Server, listener: Listener) -> None:
    caller, upstream = listener.open(server)
    close = upstream.framed(CLOSE, closing(4000)[1])
    upstream.socket.sendall(close + upstream.framed(TEXT, b"late"))
    assert caller.message() == closing(4000)


def test_upstream_that_never_answers_a_close_is_closed(server: Server, listener: Listener) -> None:
    caller, upstream = listener.open(server)
    caller.send(*closing(1000)[:2])
    assert upstream.frame().opcode == CLOSE
    assert upstream.ends()


def test_upstream_that_sends_on_after_a_close_is_closed(server: Server, listener: Listener) -> None:
    caller, upstream = listener.open(server)
    caller.send(*closing(1000)[:2])
    flood = Flood(upstream, 4000)
    flood.doing.join(60)
    assert isinstance(flood.doing.failure, OSError)


# What no upstream may send: Autobahn's chapters 3 to 7.

BROKEN: dict[str, tuple[int, list[tuple[int, bytes, bool, int]]]] = {
    "a reserved bit": (1002, [(TEXT, b"x", True, 4)]),
    "a reserved bit on a ping": (1002, [(PING, b"x", True, 1)]),
    "a reserved opcode": (1002, [(0x3, b"x", True, 0)]),
    "a reserved control opcode": (1002, [(0xB, b"x", True, 0)]),
    "a ping in fragments": (1002, [(PING, b"x", False, 0)]),
    "a long ping": (1002, [(PING, b"x" * 126, True, 0)]),
    "the continuation of nothing": (1002, [(CONTINUATION, b"x", True, 0)]),
    "a message within a message": (1002, [(TEXT, b"x", False, 0), (TEXT, b"x", True, 0)]),
    "text that is not UTF-8": (1007, [(TEXT, b"\xce\xba\xed\xa0\x80", True, 0)]),
    "half a character": (1007, [(TEXT, b"\xce", True, 0)]),
    "fragments that are not UTF-8": (
        1007,
        [(TEXT, b"\xce", False, 0), (CONTINUATION, b"\xce", True, 0)],
    ),
    "half a code": (1002, [(CLOSE, b"\x03", True, 0)]),
    **{
        f"the code {code}": (1002, [(CLOSE, closing(code).payload, True, 0)])
        for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535)
    },
    "a reserved bit on a fragment": (1002, [(TEXT, b"x", False, 0), (CONTINUATION, b"x", True, 2)]),
    "a long close": (1002, [(CLOSE, closing(1000, "x" * 124).payload, True, 0)]),
    "a close in fragments": (1002, [(CLOSE, closing(1000).payload, False, 0)]),
    "a reason that is not UTF-8": (1007, [(CLOSE, closing(1000).payload + b"\xce", True, 0)]),
}


FRAMED_WRONG = {
    "a masked frame": b"\x81\x81\0\0\0\0x",
    "a reserved opcode": b"\x83\x01x",
}


@pytest.mark.parametrize("name", FRAMED_WRONG)
def test_an_upstream_that_frames_wrongly_is_told_so_too(
    server: Server, listener: Listener, name: str
) -> None:
    caller, upstream = listener.open(server)
    upstream.socket.sendall(FRAMED_WRONG[name])
    close = upstream.message()
    assert (close.opcode, int.from_bytes(close.payload[:2])) == (CLOSE, 1002)
    assert caller.message() == closing(1011, "The upstream sent an invalid response")


@pytest.mark.parametrize("name", BROKEN)
def test_broken_upstream_protocol_closes_caller_with_1011(
    server: Server, listener: Listener, name: str
) -> None:
    code, frames = BROKEN[name]
    caller, upstream = listener.open(server)
    upstream.send(TEXT, b"before")
    for opcode, payload, fin, rsv in frames:
        upstream.send(opcode, payload, fin=fin, rsv=rsv)
    assert caller.message() == Frame(TEXT, b"before")
    close = upstream.message()
    assert (close.opcode, int.from_bytes(close.payload[:2])) == (CLOSE, code)
    upstream.socket.close()
    assert caller.message() == closing(1011, "The upstream sent an invalid response")


@pytest.mark.parametrize(
    "frames",
    [b"\xf1\x81\0\0\0\0x", b"\x83\x80\0\0\0\0", b"\x81\x81\0\0\0\0\xff", b"\x80\x81\0\0\0\0x"],
    ids=["reserved bits", "reserved opcode", "not UTF-8", "the continuation of nothing"],
)
def test_caller_that_breaks_the_protocol_ends_the_upstream(
    server: Server, listener: Listener, frames: bytes
) -> None:
    caller, upstream = listener.open(server)
    caller.send(TEXT, b"before")
    assert upstream.message() == Frame(TEXT, b"before")
    caller.socket.sendall(frames)
    assert upstream.message().opcode == CLOSE
    caller.socket.close()


# Leaving without a word.


@every_server
@pytest.mark.parametrize("how", ["close", "reset", "in a frame", "in a message"])
def test_a_caller_who_vanishes_is_1001_to_the_upstream(
    server: Server, listener: Listener, how: str
) -> None:
    caller, upstream = listener.open(server)
    if how == "in a frame":
        caller.socket.sendall(caller.framed(TEXT, b"x" * 100)[:50])
    elif how == "in a message":
        caller.send(TEXT, b"x", fin=False)
    if how == "reset":
        caller.reset()
    else:
        caller.socket.close()
    assert upstream.message() == closing(1001)
    upstream.send(*closing(1001)[:2])
    assert upstream.ends()


@every_server
@pytest.mark.parametrize("how", ["close", "reset"])
def test_disconnect_before_the_response_ends_the_handshake(
    server: Server, listener: Listener, how: str
) -> None:
    caller = listener.call(server)
    upstream = listener.accept()
    if how == "reset":
        caller.reset()
    else:
        caller.socket.close()
    if server.name == "granian":  # it tells no app of that before it has accepted
        upstream.socket.settimeout(0.5)
        with pytest.raises(TimeoutError):
            upstream.frame()
    else:
        assert upstream.ends()


@every_server
@pytest.mark.parametrize("how", ["close", "reset", "in a frame", "in a message"])
def test_an_upstream_that_vanishes_is_1011_to_the_caller(
    server: Server, listener: Listener, how: str
) -> None:
    caller, upstream = listener.open(server)
    upstream.send(TEXT, b"before")
    assert caller.message() == Frame(TEXT, b"before")
    if how == "in a frame":
        upstream.socket.sendall(upstream.framed(TEXT, b"x" * 100)[:50])
    elif how == "in a message":
        upstream.send(TEXT, b"x", fin=False)
    if how == "reset":
        upstream.reset()
    else:
        upstream.socket.close()
    assert caller.message() == closing(1011, "The upstream sent an invalid response")


# Back-pressure.


class Flood:
    """Messages of 64 KiB on one end, as many as go."""

    def __init__(self, end: End, megabytes: int) -> None:
        self.sent = 0
        self._data, self._count = end.framed(BINARY, b"x" * 65536), megabytes * 16
        self._end = end
        end.socket.settimeout(60)
        self.doing = Doing(self._send)

    def _send(self) -> None:
        for _ in range(self._count):
            self._end.socket.sendall(self._data)
            self.sent += 65536

    def is_held_back(self) -> bool:
        before = self.sent
        time.sleep(0.4)  # much longer than a message takes
        return before == self.sent and not self.doing.is_done


@every_server
@pytest.mark.parametrize("slow", ["caller", "upstream"])
def test_a_slow_side_holds_the_other_back_and_memory_stays_flat(
    server: Server, listener: Listener, slow: str
) -> None:
    caller, upstream = listener.open(server)
    fast_end, slow_end = (upstream, caller) if slow == "caller" else (caller, upstream)
    before = server.memory()
    flood = Flood(fast_end, 64)
    eventually(flood.is_held_back, 60)
    assert server.memory() - before < 40 * MB
    for _ in range(64 * 16):
        assert len(slow_end.message().payload) == 65536
    flood.doing.finish()


def test_the_upstream_is_read_while_a_write_to_it_waits(server: Server, listener: Listener) -> None:
    """Else an upstream that reads no more before it has said something would wait for ever."""
    caller, upstream = listener.open(server)
    flood = Flood(caller, 64)
    eventually(flood.is_held_back, 60)
    for _ in range(40):
        upstream.send(PING, b"are you there?")
    upstream.send(TEXT, b"I am full")
    assert caller.message() == Frame(TEXT, b"I am full")
    while flood.doing.is_alive():
        upstream.frame()
    flood.doing.finish()


def test_upstream_that_reads_nothing_hits_the_write_timeout(
    server: Server, listener: Listener
) -> None:
    caller, upstream = listener.open(server, "/hasty")
    Flood(caller, 64)
    assert caller.message() == closing(1011, "The upstream did not answer in time")
    caller.socket.close()
    upstream.drain()


def test_long_message_read_slowly_hits_no_write_timeout(server: Server, listener: Listener) -> None:
    caller, upstream = listener.open(server, "/hasty")
    sending = say(caller, [Frame(BINARY, b"x" * 16 * MB)])
    taken = 0
    while taken < 16 * MB:
        taken += len(upstream.socket.recv(MB))
        time.sleep(0.05)
    sending.finish()


@every_server
@pytest.mark.parametrize("slow", ["caller", "upstream"])
def test_a_slow_side_may_leave(server: Server, listener: Listener, slow: str) -> None:
    caller, upstream = listener.open(server)
    fast_end, slow_end = (upstream, caller) if slow == "caller" else (caller, upstream)
    flood = Flood(fast_end, 64)
    eventually(flood.is_held_back, 60)
    slow_end.reset()
    if slow == "upstream":
        assert caller.message() == closing(1011, "The upstream sent an invalid response")
        caller.socket.close()
    flood.doing.join(60)
    assert flood.doing.is_done


def test_a_fast_caller_may_leave_a_slow_upstream(server: Server, listener: Listener) -> None:
    caller, upstream = listener.open(server, "/hasty")
    flood = Flood(caller, 64)
    eventually(lambda: flood.sent > 0, 50)
    caller.socket.shutdown(2)
    upstream.drain()


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
    eventually(lambda: server.state()["open"] == 1, 50)
    caller.reset()
    if server.name == "granian":  # it tells no app of that
        upstream.socket.close()
    else:
        assert upstream.ends()
        eventually(lambda: len(server.state()["records"]) > before, 50)
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
        eventually(lambda: len(server.state()["records"]) > before, 50)
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
    eventually(lambda: bool(server.state()["open"] == 0), 60)
    listener.hang_up()
    eventually(lambda: listener.connections() == 0, 60)


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

"""Closing, broken frames and lost connections, with both ends as raw sockets (RFC 6455)."""

import pytest

from tests.support.server_choice import every_server
from tests.support.servers import Server
from tests.support.websocket_servers import is_hypercorn, websocket_servers
from tests.support.websocket_traffic import Flood
from tests.support.websocket_wire import (
    CLOSE,
    CONTINUATION,
    PING,
    TEXT,
    End,
    Frame,
    Listener,
    closing,
)

pytestmark = websocket_servers

CODES = [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 3000, 3999, 4000, 4999]


def vanish(end: End, how: str) -> None:
    """Close or reset a connection at once, or in the middle of a frame or message."""
    if how == "in a frame":
        end.socket.sendall(end.framed(TEXT, b"x" * 100)[:50])
    elif how == "in a message":
        end.send(TEXT, b"x", fin=False)
    if how == "reset":
        end.reset()
    else:
        end.socket.close()


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


@every_server
@pytest.mark.parametrize("how", ["close", "reset", "in a frame", "in a message"])
def test_a_caller_who_vanishes_is_1001_to_the_upstream(
    server: Server, listener: Listener, how: str
) -> None:
    caller, upstream = listener.open(server)
    vanish(caller, how)
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
    vanish(caller, how)
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
    vanish(upstream, how)
    assert caller.message() == closing(1011, "The upstream sent an invalid response")

"""Messages, pings and back-pressure, with both ends as raw sockets (RFC 6455)."""

import time

import pytest

from tests.support.server_choice import every_server
from tests.support.servers import Server
from tests.support.waiting import eventually
from tests.support.websocket_servers import websocket_servers
from tests.support.websocket_traffic import MB, Flood, hear, say
from tests.support.websocket_wire import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Frame,
    Listener,
    closing,
)

pytestmark = websocket_servers

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


@every_server
@pytest.mark.parametrize("slow", ["caller", "upstream"])
def test_a_slow_side_holds_the_other_back_and_memory_stays_flat(
    server: Server, listener: Listener, slow: str
) -> None:
    caller, upstream = listener.open(server)
    fast_end, slow_end = (upstream, caller) if slow == "caller" else (caller, upstream)
    before = server.memory()
    flood = Flood(fast_end, 64)
    eventually(flood.is_held_back)
    assert server.memory() - before < 40 * MB
    for _ in range(64 * 16):
        assert len(slow_end.message().payload) == 65536
    flood.doing.finish()


def test_the_upstream_is_read_while_a_write_to_it_waits(server: Server, listener: Listener) -> None:
    """Else an upstream that reads no more before it has said something would wait for ever."""
    caller, upstream = listener.open(server)
    flood = Flood(caller, 64)
    eventually(flood.is_held_back)
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
        time.sleep(0.2)
    sending.finish()


@every_server
@pytest.mark.parametrize("slow", ["caller", "upstream"])
def test_a_slow_side_may_leave(server: Server, listener: Listener, slow: str) -> None:
    caller, upstream = listener.open(server)
    fast_end, slow_end = (upstream, caller) if slow == "caller" else (caller, upstream)
    flood = Flood(fast_end, 64)
    eventually(flood.is_held_back)
    slow_end.reset()
    if slow == "upstream":
        assert caller.message() == closing(1011, "The upstream sent an invalid response")
        caller.socket.close()
    flood.doing.join(60)
    assert flood.doing.is_done


def test_a_fast_caller_may_leave_a_slow_upstream(server: Server, listener: Listener) -> None:
    caller, upstream = listener.open(server, "/hasty")
    flood = Flood(caller, 64)
    eventually(lambda: flood.sent > 0)
    caller.socket.shutdown(2)
    upstream.drain()

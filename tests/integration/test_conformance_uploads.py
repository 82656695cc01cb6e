"""Uploads that break off, and answers that come before their end, seen from both sides.

All of it on one server, and on every server the tests that depend on the server.
"""

import contextlib
import socket
import struct
import threading
import time

import pytest

from tests.support.server_choice import every_server
from tests.support.servers import Answer, Server, ask
from tests.support.waiting import eventually
from tests.support.wire import Wire, connect, head, until_the_end

pytest_plugins = ["tests.support.wire_fixtures"]


# RFC 9112 8: an upload that is not whole does not look whole.

PARTS = {
    "length": ("Content-Length: 500", b"a" * 100),
    "chunked": ("Transfer-Encoding: chunked", b"64\r\n" + b"a" * 100 + b"\r\n"),
}


@every_server
@pytest.mark.parametrize("reset", [False, True], ids=["closes", "resets"])
@pytest.mark.parametrize(("field", "part"), PARTS.values(), ids=PARTS)
def test_9112_8_an_upload_that_its_caller_tears_is_torn_upstream(
    forwarder: Server, wire: Wire, field: str, part: bytes, reset: bool
) -> None:
    with connect(forwarder) as connection:
        connection.sendall(head("POST", "/forward/x", field) + part)
        eventually(lambda: bool(wire.seen) and b"a" * 100 in wire.only.framed)
        if reset:
            linger = struct.pack("ii", 1, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    eventually(lambda: wire.only.torn)
    assert not wire.only.whole
    assert not wire.only.framed.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize(
    "broken",
    [b"zz\r\n", b"-1\r\n", b"5\r\nhelloXX\r\n", b"\x00\r\n", b"f" * 30 + b"\r\n"],
    ids=["no hex", "negative", "too long", "NUL", "a huge size"],
)
def test_9112_7_1_an_upload_with_a_broken_chunk_is_torn_upstream(
    forwarder: Server, wire: Wire, broken: bytes
) -> None:
    with connect(forwarder) as connection:
        connection.sendall(head("POST", "/forward/x", PARTS["chunked"][0]) + PARTS["chunked"][1])
        eventually(lambda: bool(wire.seen) and b"a" * 100 in wire.only.framed)
        connection.sendall(broken)
        until_the_end(connection)
    eventually(lambda: wire.only.torn)
    assert not wire.only.framed.endswith(b"0\r\n\r\n")


# RFC 9112 9.5: an answer that comes while the upload goes on.

EARLY = {
    "401": b"HTTP/1.1 401 No\r\nwww-authenticate: Basic\r\ncontent-length: 2\r\n\r\nno",
    "413": b"HTTP/1.1 413 Big\r\nconnection: close\r\ncontent-length: 2\r\n\r\nno",
    "302": b"HTTP/1.1 302 Go\r\nlocation: /y\r\ncontent-length: 2\r\n\r\nno",
}
BLOCK = b"a" * 65536
ENDLESS = {
    "length": (f"Content-Length: {1 << 40}", BLOCK),
    "chunked": ("Transfer-Encoding: chunked", b"10000\r\n" + BLOCK + b"\r\n"),
}


def answered_while_uploading(server: Server, field: str, block: bytes, pause: float) -> bytes:
    """What comes back to a caller who sends on without end; 50 MB are taken at most."""
    answer, taken = b"", 0
    with connect(server) as connection:
        connection.sendall(head("POST", "/forward/x", field))

        def upload() -> None:
            nonlocal taken
            with contextlib.suppress(OSError):
                while True:
                    connection.sendall(block)
                    taken += len(block)
                    time.sleep(pause)

        uploading = threading.Thread(target=upload)
        uploading.start()
        try:
            while not answer.endswith(b"no") and (part := connection.recv(65536)):
                answer += part
        finally:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            uploading.join(60)
    assert taken < 50_000_000
    return answer


@pytest.mark.parametrize("pause", [0, 0.2], ids=["fast", "slow"])
@pytest.mark.parametrize(("field", "block"), ENDLESS.values(), ids=ENDLESS)
@pytest.mark.parametrize("status", EARLY)
def test_9112_9_5_early_response_is_relayed_and_ends_the_upload(
    forwarder: Server, wire: Wire, status: str, field: str, block: bytes, pause: float
) -> None:
    wire.early, wire.answer = True, EARLY[status]
    answer = Answer(answered_while_uploading(forwarder, field, block, pause))
    assert (answer.status, answer.body) == (int(status), b"no")
    eventually(lambda: wire.only.torn)


@every_server
@pytest.mark.parametrize("pause", [0, 0.2], ids=["fast", "slow"])
def test_9112_9_5_an_early_answer_passes_on_each_server(
    forwarder: Server, wire: Wire, pause: float
) -> None:
    wire.early, wire.answer = True, EARLY["413"]
    answer = Answer(answered_while_uploading(forwarder, *ENDLESS["chunked"], pause))
    assert (answer.status, answer.body) == (413, b"no")
    eventually(lambda: ask(forwarder, "/exchanges").body == b"0")


@every_server
def test_9112_9_5_disconnect_from_a_refused_upload_is_noticed(
    forwarder: Server, wire: Wire
) -> None:
    """Before the read timeout of 10 seconds, which the stalled answer would run into."""
    wire.early, wire.answer = True, EARLY["413"].replace(b"length: 2", b"length: 200")
    field, block = ENDLESS["length"]
    with connect(forwarder) as connection:
        connection.sendall(head("POST", "/forward/x", field) + block[:1000])
        answer = b""
        while not answer.endswith(b"no") and (part := connection.recv(65536)):
            answer += part
    eventually(lambda: wire.only.torn)

"""Both ends as bytes: an upstream that keeps what it reads and answers as told, and a caller."""

import contextlib
import io
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import pytest

from tests.support.servers import COMMANDS, NOISE, Answer, Server

APP = "tests.support.apps.forward_app"

FIELD_VALUES = {  # as sent, and as expected at the other end
    "obs-text": ("\xe9\xff\x80\xa0", b"\xe9\xff\x80\xa0"),
    "empty": ("", b""),
    "a tab within": ("a\tb", b"a\tb"),
    "blanks within": ("a  b", b"a  b"),
    "blanks around": ("\t a \t", b"a"),
    "quotes": ('a,,"b;\\"', b'a,,"b;\\"'),
    "long": ("v" * 6000, b"v" * 6000),
}
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


@dataclass
class SeenRequest:
    """One request as the upstream read it, by the letter of RFC 9112."""

    head: bytes
    connection: socket.socket
    body: bytes = b""
    framed: bytes = b""  # the body as it came, with its chunks
    whole: bool = False
    torn: bool = False
    closed: bool = False  # the connection, by both

    @property
    def line(self) -> bytes:
        return self.head.split(b"\r\n")[0]

    @property
    def method(self) -> bytes:
        return self.line.split(b" ")[0]

    @property
    def target(self) -> bytes:
        return self.line.split(b" ", 1)[1].removesuffix(b" HTTP/1.1")

    @property
    def fields(self) -> list[tuple[bytes, bytes]]:
        pairs = [line.partition(b":") for line in self.head.split(b"\r\n")[1:] if line]
        return [(name.lower(), value.strip(b" \t")) for name, _, value in pairs]

    @property
    def names(self) -> set[bytes]:
        return {name for name, _ in self.fields}

    def all(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.fields if key == name]

    @property
    def framing(self) -> list[tuple[bytes, bytes]]:
        return [f for f in self.fields if f[0] in (b"content-length", b"transfer-encoding")]


class Wire:
    """The upstream. It keeps its connections open, so what is sent too much is a request to it.

    Not the testing kit's: its parser is strict, and a peer of its own, where that one is lenient.
    """

    def __init__(self) -> None:
        self.open: set[socket.socket] = set()
        self.under_way: set[socket.socket] = set()
        self.reset()

    def reset(self) -> None:
        self.seen: list[SeenRequest] = []
        self.answer = OK
        self.closes = False  # the connection, when it has answered
        self.early = False  # answers when the head is there, and waits for the other to close

    def __enter__(self) -> Self:
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=200)
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for connection in list(self.open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(60)

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    @property
    def busy(self) -> int:
        return len(self.under_way)

    @property
    def only(self) -> SeenRequest:
        assert len(self.seen) == 1, [seen.line for seen in self.seen]
        return self.seen[0]

    def _accept(self) -> None:
        serving = []
        with contextlib.suppress(OSError):
            while True:
                connection = self._listening.accept()[0]
                self.open.add(connection)
                thread = threading.Thread(target=self._serve, args=(connection,))
                thread.start()
                serving.append(thread)
        for thread in serving:
            thread.join(50)

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection, connection.makefile("rb") as reader, contextlib.suppress(OSError):
                while self._exchange(connection, reader):
                    self.under_way.discard(connection)
                connection.shutdown(socket.SHUT_WR)
                self.under_way.discard(connection)
                reader.read()  # or what comes late would reset the connection, and the answer
        except OSError:
            pass
        finally:
            self.under_way.discard(connection)
            self.open.discard(connection)
            for seen in self.seen:
                seen.closed = seen.closed or seen.connection is connection

    def _exchange(self, connection: socket.socket, reader: io.BufferedReader) -> bool:
        """Read one request and answer it; whether another may follow."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            line = reader.readline()
            if not line:
                return False
            head += line
        seen = SeenRequest(head, connection)
        self.under_way.add(connection)
        self.seen.append(seen)
        if self.early:
            connection.sendall(self.answer)
            time.sleep(0.1)  # long enough for a fast caller to fill all buffers on the way
            with contextlib.suppress(OSError):
                while reader.read1(65536):
                    pass
            seen.torn = True
            return False
        try:
            _read_body(seen, reader)
        except (EOFError, OSError):
            seen.torn = True
            return False
        seen.whole = True
        closes = self.closes
        connection.sendall(self.answer)
        return not closes


def _read_body(seen: SeenRequest, reader: io.BufferedReader) -> None:
    def exactly(number: int) -> bytes:
        data = b""
        while len(data) < number:
            part: bytes = reader.read1(number - len(data))
            seen.framed += part
            data += part
            if not part:
                raise EOFError
        return data

    def line() -> bytes:
        data: bytes = reader.readline()
        seen.framed += data
        if not data.endswith(b"\r\n"):
            raise EOFError
        return data[:-2]

    framing = dict(seen.framing)
    if b"transfer-encoding" in framing:
        while size := int(line(), 16):
            seen.body += exactly(size)
            exactly(2)
        while line():
            pass
    elif b"content-length" in framing:
        seen.body = exactly(int(framing[b"content-length"]))


# The caller.


def connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=60)


def until_the_end(connection: socket.socket) -> bytes:
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            data += part
    return data


def head(method: str, target: str, *fields: str, version: str = "1.1", host: str = "app") -> bytes:
    lines = [f"{method} {target} HTTP/{version}", f"Host: {host}", "Connection: close", *fields]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def send(server: Server, data: bytes) -> Answer:
    """What comes back to the end of the connection, less the server's own 100."""
    with connect(server) as connection:
        connection.sendall(data)
        answer = until_the_end(connection)
    while answer.startswith((b"HTTP/1.1 100", b"HTTP/1.0 100")):
        answer = answer.partition(b"\r\n\r\n")[2]
    return Answer(answer)


def forwarded(
    server: Server,
    wire: Wire,
    *fields: str,
    method: str = "GET",
    target: str = "/forward/x",
    body: bytes = b"",
    version: str = "1.1",
    host: str = "app",
) -> SeenRequest:
    """The one request that the upstream saw for one of a caller's."""
    answer = send(server, head(method, target, *fields, version=version, host=host) + body)
    assert answer.status == 200, (answer.status, answer.body)
    assert wire.only.whole
    return wire.only


def relayed(
    server: Server,
    wire: Wire,
    *lines: str,
    status: str = "200 OK",
    body: bytes = b"",
    version: str = "1.1",
    closes: bool = False,
    method: str = "GET",
    fields: tuple[str, ...] = (),
) -> Answer:
    """What a caller gets of an upstream's answer."""
    answer = "\r\n".join([f"HTTP/{version} {status}", *lines, "", ""])
    wire.answer, wire.closes = answer.encode("latin-1") + body, closes
    return send(server, head(method, "/forward/x", *fields))


def serving(name: str, wire: Wire, attribute: str = "app", *options: str) -> Iterator[Server]:
    """An app of `forward_app` on one server, whose log must be quiet at the end."""
    with pytest.MonkeyPatch.context() as patch:
        command = name.partition("+")[0]
        patch.setitem(COMMANDS, command, [*COMMANDS[command], *options])
        server = Server(name, wire.url, app=f"{APP}:{attribute}")
    yield server
    server.stop()
    for noise in NOISE:
        assert noise not in server.log()

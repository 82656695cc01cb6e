"""An upstream that records requests, and refuses what is ambiguous."""

import contextlib
import re
import socketserver
import threading
from dataclasses import dataclass, field


class Malformed(Exception):
    """What an upstream might read in two ways."""


@dataclass
class Request:
    method: bytes
    target: bytes
    fields: list[tuple[bytes, bytes]]
    body: bytes = b""

    def all(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.fields if key == name]


_LINE = re.compile(rb"([-!#$%&'*+.^_`|~0-9a-zA-Z]+) ([!-~]+) HTTP/1\.1")
_FIELD = re.compile(rb"([-!#$%&'*+.^_`|~0-9a-zA-Z]+):[ \t]*([^\r\n\0]*?)[ \t]*")
_CHUNK = re.compile(rb"[0-9a-fA-F]{1,16}")
_LENGTH = re.compile(rb"[0-9]{1,20}")


def requests_in(data: bytes) -> tuple[list[Request], bytes]:
    """The whole requests at the start of `data`, and what is left.

    Raises:
        Malformed: a byte that RFC 9112 does not allow, more than one framing field, or a chunk
            extension or a trailer, which nobody has to send on.
    """
    requests = []
    while (found := _request_in(data)) is not None:
        request, data = found
        requests.append(request)
    return requests, data


def _request_in(data: bytes) -> tuple[Request, bytes] | None:
    head, end, rest = data.partition(b"\r\n\r\n")
    if not end:
        return None
    line, *lines = head.split(b"\r\n")
    match = _LINE.fullmatch(line)
    if not match:
        raise Malformed(line)
    request = Request(match[1], match[2], [])
    for text in lines:
        match = _FIELD.fullmatch(text)
        if not match:
            raise Malformed(text)
        request.fields.append((match[1].lower().replace(b"_", b"-"), match[2]))
    lengths, codings = request.all(b"content-length"), request.all(b"transfer-encoding")
    if len(request.all(b"host")) != 1 or len(lengths + codings) > 1:
        raise Malformed(head)
    if codings:
        if codings != [b"chunked"]:
            raise Malformed(head)
        return _chunks_in(request, rest)
    if lengths and not _LENGTH.fullmatch(lengths[0]):
        raise Malformed(head)
    length = int(lengths[0]) if lengths else 0
    request.body = rest[:length]
    return (request, rest[length:]) if len(rest) >= length else None


def _chunks_in(request: Request, data: bytes) -> tuple[Request, bytes] | None:
    size = -1
    while size:
        line, end, data = data.partition(b"\r\n")
        if not end:
            return None
        if not _CHUNK.fullmatch(line):
            raise Malformed(line)
        size = int(line, 16)
        if len(data) < size + 2:
            return None
        if data[size : size + 2] != b"\r\n":
            raise Malformed(data[: size + 2])
        request.body += data[:size]
        data = data[size + 2 :]
    return request, data


@dataclass
class Connection:
    """What came in on one connection of the upstream's."""

    raw: bytes = b""
    requests: list[Request] = field(default_factory=list)
    malformed: Malformed | None = None
    busy: bool = False


class Recorder(socketserver.ThreadingTCPServer):
    """Keeps connections and all that it reads, and answers each request with its target.

    Not the testing kit's: what is one request here must not depend on how that one reads.
    """

    daemon_threads = True
    request_queue_size = 200

    def __init__(self) -> None:
        self.connections: list[Connection] = []
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def __exit__(self, *exc: object) -> None:
        self.shutdown()
        self.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def busy(self) -> int:
        return sum(connection.busy for connection in self.connections)


class _Handler(socketserver.BaseRequestHandler):
    server: Recorder

    def handle(self) -> None:
        connection = Connection()
        self.server.connections.append(connection)
        rest = b""
        with contextlib.suppress(OSError):
            while part := self.request.recv(65536):
                connection.busy = True
                connection.raw += part
                try:
                    requests, rest = requests_in(rest + part)
                except Malformed as exc:
                    connection.malformed = exc
                    break
                connection.requests += requests
                connection.busy = bool(rest)
                for request in requests:
                    head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(request.target)
                    self.request.sendall(
                        head if request.method == b"HEAD" else head + request.target
                    )
        connection.busy = False

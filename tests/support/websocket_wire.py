"""Both ends of a relayed WebSocket as raw sockets: frames byte by byte (RFC 6455 5.2)."""

import base64
import contextlib
import hashlib
import socket
import struct
from pathlib import Path
from typing import NamedTuple

from tests.support.servers import Server

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Frame(NamedTuple):
    opcode: int
    payload: bytes
    fin: bool = True


def closing(code: int, reason: str = "") -> Frame:
    return Frame(CLOSE, struct.pack("!H", code) + reason.encode())


def accept_of(key: bytes) -> bytes:
    return base64.b64encode(hashlib.sha1(key + _GUID).digest())


class End:
    """One end of a connection: the caller, who masks, or the upstream, who does not."""

    def __init__(self, connection: socket.socket, *, masks: bool) -> None:
        self.socket, self._masks = connection, masks
        self.socket.settimeout(60)
        self.head = b""
        self._data = b""

    def read_head(self) -> bytes:
        while b"\r\n\r\n" not in self._data:
            if not (part := self.socket.recv(65536)):
                raise EOFError(self._data)
            self._data += part
        self.head, _, self._data = self._data.partition(b"\r\n\r\n")
        return self.head

    @property
    def status(self) -> int:
        return int(self.head.split(b" ", 2)[1])

    @property
    def line(self) -> bytes:
        return self.head.split(b"\r\n")[0]

    def all(self, name: bytes) -> list[bytes]:
        pairs = [line.partition(b":") for line in self.head.split(b"\r\n")[1:]]
        return [value.strip() for key, _, value in pairs if key.lower() == name]

    def answer(self, *fields: str, status: str = "101 Switching Protocols") -> None:
        """The upstream's answer to a handshake."""
        accept = accept_of(self.all(b"sec-websocket-key")[0]).decode()
        lines = [f"HTTP/1.1 {status}", "Upgrade: websocket", "Connection: Upgrade", *fields]
        if not any(field.startswith("Sec-WebSocket-Accept") for field in fields):
            lines.append(f"Sec-WebSocket-Accept: {accept}")
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode())

    def send(self, opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0) -> None:
        self.socket.sendall(self.framed(opcode, payload, fin=fin, rsv=rsv))

    def framed(self, opcode: int, payload: bytes, *, fin: bool = True, rsv: int = 0) -> bytes:
        size, mask = len(payload), 0x80 if self._masks else 0
        head = bytes([fin << 7 | rsv << 4 | opcode])
        if size < 126:
            head += bytes([mask | size])
        elif size < 65536:
            head += bytes([mask | 126]) + struct.pack("!H", size)
        else:
            head += bytes([mask | 127]) + struct.pack("!Q", size)
        return head + (bytes(4) if mask else b"") + payload  # a mask of zeros changes nothing

    def frame(self) -> Frame:
        """The next frame, unmasked.

        Raises:
            EOFError: the connection has ended, or was reset.
        """
        first, second = self._exactly(2)
        size = second & 0x7F
        if size >= 126:
            size = int.from_bytes(self._exactly(2 if size == 126 else 8))
        mask = self._exactly(4) if second & 0x80 else b""
        payload = self._exactly(size)
        if any(mask):
            whole = int.from_bytes(mask * (size // 4 + 1)) >> (8 * (4 - size % 4))
            payload = (int.from_bytes(payload) ^ whole).to_bytes(size)
        return Frame(first & 0x0F, payload, bool(first & 0x80))

    def message(self) -> Frame:
        """The next message, or Close, as one frame; pings are answered."""
        opcode, payload = CONTINUATION, b""
        while True:
            frame = self.frame()
            if frame.opcode == PING:
                self.send(PONG, frame.payload)
            elif frame.opcode >= CLOSE:
                return frame
            else:
                opcode, payload = opcode or frame.opcode, payload + frame.payload
                if frame.fin:
                    return Frame(opcode, payload)

    def _exactly(self, count: int) -> bytes:
        parts, have = [self._data], len(self._data)
        while have < count:
            try:
                part = self.socket.recv(1 << 20)
            except ConnectionResetError:
                part = b""
            if not part:
                raise EOFError
            parts.append(part)
            have += len(part)
        data = b"".join(parts)
        self._data = data[count:]
        return data[:count]

    def ends(self) -> bool:
        """Wait for the end of the connection; no frame may come before it."""
        try:
            frame = self.frame()
        except EOFError:
            return True
        raise AssertionError(frame)

    def drain(self) -> None:
        """Read to the end of the connection, and answer nothing."""
        with contextlib.suppress(EOFError):
            while True:
                self.frame()

    def reset(self) -> None:
        linger = struct.pack("ii", 1, 0)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.socket.close()


class Listener:
    """The upstream, to which the test itself answers."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=200)
        self._socket.settimeout(60)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.address = self.url.removeprefix("http://").encode()
        self.ends: list[End] = []

    def accept(self) -> End:
        """The next connection, and the handshake on it."""
        end = End(self._socket.accept()[0], masks=False)
        self.ends.append(end)
        end.read_head()
        return end

    def is_quiet(self) -> bool:
        """Whether nobody connects."""
        self._socket.settimeout(0.3)
        try:
            self._socket.accept()[0].close()
        except TimeoutError:
            return True
        finally:
            self._socket.settimeout(60)
        return False

    def call(self, server: Server, target: str = "/forward/x", *fields: str) -> End:
        """A caller's handshake, sent."""
        end = End(socket.create_connection(("127.0.0.1", server.port)), masks=True)
        self.ends.append(end)
        lines = [f"GET {target} HTTP/1.1", "Host: app", "Upgrade: websocket"]
        lines += ["Connection: Upgrade", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {KEY}"]
        end.socket.sendall("\r\n".join([*lines, *fields, "", ""]).encode("latin-1"))
        return end

    def open(
        self, server: Server, target: str = "/forward/x", *fields: str, answer: tuple[str, ...] = ()
    ) -> tuple[End, End]:
        """A WebSocket from end to end: the caller, and the upstream."""
        caller = self.call(server, target, *fields)
        upstream = self.accept()
        upstream.answer(*answer)
        caller.read_head()
        assert caller.status == 101, caller.head
        return caller, upstream

    def connections(self) -> int:
        """How many there are to here, as the machine counts them; those of the test are closed."""
        here = f":{self._socket.getsockname()[1]:04X}"
        lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
        established, half_closed = "01", "08"
        return sum(
            fields[2].endswith(here) and fields[3] in (established, half_closed) for fields in lines
        )

    def hang_up(self) -> None:
        for end in self.ends:
            end.socket.close()
        self.ends.clear()

    def close(self) -> None:
        self.hang_up()
        self._socket.close()

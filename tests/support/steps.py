"""Both ends of an exchange in one event loop, so that its steps can be counted.

Only the loop's own iterations move anything on. A fault at the n-th iteration is the same fault in
every run, on a machine of any speed.
"""

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

import anyio
import anyio.abc
import anyio.lowlevel
from starlette.types import Message, Scope
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol

_HEAD = re.compile(rb"(\w+) /([\w-]*)[^ ]* HTTP/1\.1\r\n(?:[^\r\n]+\r\n)*\r\n")
_OK = b"HTTP/1.1 200 OK\r\n"
_RESPONSES: dict[bytes, tuple[bytes, ...]] = {
    b"": (_OK + b"content-length: 4\r\n\r\nha", b"lf"),
    b"chunked": (_OK + b"transfer-encoding: chunked\r\n\r\n2\r\n", b"ab\r\n", b"0\r\n\r\n"),
    b"events": (
        _OK + b"content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n",
        b"9\r\ndata: 1\n\n\r\n",
        b"0\r\n\r\n",
    ),
    b"refused": (b"HTTP/1.1 413 No\r\ncontent-length: 2\r\nconnection: close\r\n\r\n", b"no"),
    b"denied": (b"HTTP/1.1 403 No\r\ncontent-length: 2\r\n\r\n", b"no"),
}


class LoopbackUpstream:
    """A scripted upstream on a socket of the same event loop.

    Attributes:
        connections: The number of open connections.
    """

    def __init__(self) -> None:
        self.url = ""
        self.connections = 0

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        self.url = f"http://127.0.0.1:{port}"
        async with listener, anyio.create_task_group() as group:
            group.start_soon(listener.serve, self._handle)
            await anyio.sleep(0.01)  # until it listens
            yield
            group.cancel_scope.cancel()

    async def _handle(self, stream: anyio.abc.SocketStream) -> None:
        self.connections += 1
        try:
            with suppress(anyio.BrokenResourceError, anyio.EndOfStream):
                async with stream:
                    await self._respond(stream)
        finally:
            self.connections -= 1

    async def _respond(self, stream: anyio.abc.SocketStream) -> None:
        data = b""
        while True:
            while (head := _HEAD.match(data)) is None:
                data += await stream.receive()
            data = data[head.end() :]
            if head[2] == b"websocket":
                await _echo_messages(stream, head[0] + data)
                return
            if head[2] != b"refused":
                while (end := _end_of_body(head[0].lower(), data)) is None:
                    data += await stream.receive()
                data = data[end:]
            for part in _RESPONSES[head[2]]:
                await stream.send(part)
                await anyio.lowlevel.checkpoint()
            if head[2] == b"refused":
                return


def _end_of_body(head: bytes, data: bytes) -> int | None:
    if b"transfer-encoding: chunked" in head:
        end = data.find(b"0\r\n\r\n")
        return None if end < 0 else end + 5
    length = re.search(rb"content-length: (\d+)", head)
    needed = 0 if length is None else int(length[1])
    return needed if len(data) >= needed else None


async def _echo_messages(stream: anyio.abc.SocketStream, data: bytes) -> None:
    """Greet, then send each message back, and close after the second."""
    protocol, count = ServerProtocol(), 0
    while True:
        protocol.receive_data(data)
        for event in protocol.events_received():
            if not isinstance(event, Frame):
                protocol.send_response(protocol.accept(cast(Request, event)))
                protocol.send_text(b"hello")
            elif event.opcode is Opcode.TEXT:
                protocol.send_text(bytes(event.data))
                count += 1
                if count == 2:
                    protocol.send_close(1000, "done")
        for out in protocol.data_to_send():
            if not out:
                return
            await stream.send(out)
        data = await stream.receive()


class SteppedCaller:
    """The caller's side: each `receive` and `send` takes an iteration of the loop.

    Arguments:
        body: The chunks of the request body.
        complete: Whether the body ends after them.
        websocket: Whether the caller opens a WebSocket, and sends `body` as messages.
    """

    def __init__(
        self, body: Sequence[bytes] = (), *, complete: bool = True, websocket: bool = False
    ) -> None:
        self.messages: list[Message] = []
        self._has_failed = False
        self.receive_error: Exception | None = None
        self.send_error: Exception | None = None
        self._disconnect: Message = {"type": "http.disconnect"}
        self._after_accept: list[Message] = []
        self._wake = anyio.Event()  # set by a fault, or when there is a message
        parts = list(body) or [b""]
        self._incoming: list[Message] = [
            {"type": "http.request", "body": part, "more_body": not complete or number < len(parts)}
            for number, part in enumerate(parts, 1)
        ]
        headers = [(b"host", b"app"), (b"transfer-encoding", b"chunked")][: 2 if body else 1]
        self.scope: Scope = {
            "type": "http",
            "method": "POST" if body else "GET",
            "path": "/",
            "query_string": b"",
            "headers": headers,
        }
        if websocket:
            self._disconnect = {"type": "websocket.disconnect", "code": 1006}
            self._incoming = [{"type": "websocket.connect"}]
            self._after_accept = [
                {"type": "websocket.receive", "text": part.decode()} for part in body
            ]
            extensions: dict[str, Any] = {"websocket.http.response": {}}
            self.scope = {
                "type": "websocket", "path": "/", "headers": headers[:1], "extensions": extensions
            }  # fmt: skip

    def fail(self, *, receive: Exception | None = None, send: Exception | None = None) -> None:
        """Disconnect, or let each later `receive` or `send` raise, also those that wait now."""
        self.receive_error, self.send_error = receive, send
        self._has_failed = send is None
        self._wake.set()

    async def receive(self) -> Message:
        await anyio.lowlevel.checkpoint()
        while not self._incoming and not self._has_failed:
            self._wake = anyio.Event()
            await self._wake.wait()
        if self.receive_error is not None:
            raise self.receive_error
        if self._incoming and (
            not self._has_failed or self._incoming[0]["type"] == "websocket.connect"
        ):
            return self._incoming.pop(0)
        return self._disconnect

    async def send(self, message: Message) -> None:
        for _ in range(2):
            await anyio.lowlevel.checkpoint()
            if self.send_error is not None:
                raise self.send_error
        self.messages.append(message)
        if message["type"] == "websocket.accept":
            self._incoming += self._after_accept
        self._has_failed |= message["type"] == "websocket.close"
        self._wake.set()

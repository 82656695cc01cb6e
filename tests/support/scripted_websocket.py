"""An upstream whose WebSocket reads and writes as a test says, without sockets."""

import base64
import hashlib
from typing import Any

import anyio
from starlette.types import Message

from asgi_upstream import ReverseProxy
from tests.support.flavor import httpcore, httpx

SCOPE: dict[str, Any] = {
    "type": "websocket",
    "http_version": "1.1",
    "scheme": "ws",
    "path": "/x",
    "raw_path": b"/x",
    "root_path": "",
    "query_string": b"",
    "headers": [],
}


async def called(app: Any, coming: list[Message] | None = None, **scope: Any) -> list[Message]:
    """What an app sends for one handshake on a server that takes no denial response."""
    sent: list[Message] = []

    coming = coming or [{"type": "websocket.connect"}]

    async def receive() -> Message:
        if not coming:
            await anyio.sleep_forever()
        return coming.pop()

    async def send(message: Message) -> None:
        sent.append(message)

    await app(SCOPE | scope, receive, send)
    return sent


class Scripted(httpcore.AsyncNetworkStream, httpx.AsyncBaseTransport):
    """An upstream that accepts, and whose connection reads and writes as it is told."""

    def __init__(self, *, write_error: Exception | None = None) -> None:
        self.written: list[bytes] = []
        self.comes: anyio.Event = anyio.Event()
        self._write_error = write_error

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        key = request.headers["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        fields = {"upgrade": "websocket", "connection": "Upgrade", "sec-websocket-accept": accept}
        return httpx.Response(101, headers=fields, extensions={"network_stream": self})

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        await self.comes.wait()
        return b"\x81\x05hello" + b"\x88\x02\x0f\xa1"  # and a Close of 4001

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.written.append(buffer)
        self.comes.set()
        if self._write_error is None:
            await anyio.sleep_forever()
        else:
            raise self._write_error

    async def aclose(self) -> None:
        pass

    async def calls(self) -> list[Message]:
        """What a caller gets who says one thing."""
        coming: list[Message] = [
            {"type": "websocket.receive", "text": "anybody?"},
            {"type": "websocket.connect"},
        ]
        async with httpx.AsyncClient(base_url="http://x", transport=self) as client:
            return await called(ReverseProxy(), coming, state={"client": client})


HEARD = [
    {"type": "websocket.accept", "subprotocol": None, "headers": []},
    {"type": "websocket.send", "text": "hello"},
    {"type": "websocket.close", "code": 4001, "reason": ""},
]


class Pouring(Scripted):
    """An upstream that says at once all that it is given, and a Close of 4001 behind it."""

    def __init__(self, frames: bytes) -> None:
        super().__init__()
        self._left = frames + b"\x88\x02\x0f\xa1"

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        piece, self._left = self._left[:max_bytes], self._left[max_bytes:]
        return piece

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.written.append(buffer)


class SlowReader(Scripted):
    """An upstream that takes a long message slowly, and answers only after its end."""

    def __init__(self, chunk_time: float) -> None:
        super().__init__()
        self._chunk_time = chunk_time
        self._missing = 1_000_000

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with anyio.move_on_after(timeout):
            return await super().read(max_bytes)
        raise httpcore.ReadTimeout

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self.written.append(buffer)
        await anyio.sleep(self._chunk_time)
        self._missing -= len(buffer)
        if self._missing <= 0:
            self.comes.set()

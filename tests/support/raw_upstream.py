"""An upstream of asyncio whose answers a test writes byte by byte, and clients of it."""

import asyncio
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from typing import Any, Self

from tests.support.flavor import AsyncioTransport, httpx

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


async def read_request(reader: asyncio.StreamReader) -> bytes:
    """Head and body, as they came."""
    data = await reader.readuntil(b"\r\n\r\n")
    fields = data.lower()
    if b"content-length:" in fields:
        length = int(fields.split(b"content-length:")[1].split(b"\r\n")[0])
        data += await reader.readexactly(length)
    elif b"transfer-encoding: chunked" in fields:
        while not data.endswith(b"\r\n0\r\n\r\n"):
            data += await reader.readuntil(b"\r\n")
    return data


class RawUpstream:
    """On loopback: serves each connection by a function, or each request with `OK`.

    Not the testing kit's: it is in the event loop of the client; each can wait for the other.
    """

    def __init__(
        self, serve: Serve | None = None, *, tls: ssl.SSLContext | None = None, path: str = ""
    ) -> None:
        self._serve = serve or self._answer_all
        self._tls = tls
        self._path = path
        self._serving: set[asyncio.Task[Any]] = set()
        self.requests: list[bytes] = []
        self.peers: list[Any] = []  # of each connection there was

    @property
    def open(self) -> int:
        return len(self._serving)

    async def __aenter__(self) -> Self:
        if self._path:
            self._server = await asyncio.start_unix_server(self._accept, self._path, ssl=self._tls)
            self.url = "http://of.a.socket"
        else:
            self._server = await asyncio.start_server(
                self._accept, "127.0.0.1", 0, ssl=self._tls, backlog=1000
            )
            self.port = self._server.sockets[0].getsockname()[1]
            scheme = "https" if self._tls else "http"
            self.url = f"{scheme}://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        while self._serving:
            for task in self._serving:
                task.cancel()
            await asyncio.wait(self._serving)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        self.peers.append(writer.get_extra_info("peername"))
        try:
            await self._serve(reader, writer)
        except (OSError, EOFError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()
            self._serving.discard(task)

    async def _answer_all(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            self.requests.append(await read_request(reader))
            writer.write(OK[:-2] if self.requests[-1].startswith(b"HEAD") else OK)


def client(upstream: RawUpstream | None = None, **options: Any) -> httpx.AsyncClient:
    base_url = upstream.url if upstream is not None else ""
    return httpx.AsyncClient(transport=AsyncioTransport(**options), base_url=base_url, timeout=60)


def sending(data: bytes, *, then_reset: bool = False) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(data)
        await writer.drain()
        if then_reset:
            await asyncio.sleep(0.1)  # until that was read
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        else:
            writer.write_eof()
            await reader.read()

    return serve


BROKEN = {
    "closed at once": sending(b""),
    "closed in the head": sending(b"HTTP/1.1 200 OK\r\nconte"),
    "closed in the body": sending(OK[:-1]),
    "closed in a chunk": sending(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab"),
    "not HTTP": sending(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"),
    "reset at once": sending(b"", then_reset=True),
    "reset in the body": sending(OK[:-1], then_reset=True),
}

"""The least relay: no framework, a fixed request, no error handling."""

import asyncio
import os
import ssl
from importlib import import_module
from typing import Any, cast

from starlette.types import ASGIApp, Receive, Scope, Send

UPSTREAM = os.environ.get("UPSTREAM_URL", "http://127.0.0.1:9")


def bare() -> ASGIApp:
    return _bare(None)


def bare_build_request() -> ASGIApp:
    return _bare(import_module("httpx").AsyncClient())


def _bare(client: Any) -> ASGIApp:
    idle: list[BareConnection] = []
    scheme, host, port = UPSTREAM.replace("/", "").split(":")
    tls = ssl.create_default_context() if scheme == "https" else None

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path: bytes = scope["raw_path"]
        if client is not None:
            client.build_request("GET", UPSTREAM + scope["path"])
        if idle:
            connection = idle.pop()
        else:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(BareConnection, host, int(port), ssl=tls)
        if scope["method"] == "POST":
            length = int(path[len(b"/upload/") :])
            connection.write(
                b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % (path, length)
            )
            more = True
            while more:
                message = await receive()
                more = message.get("more_body", False)
                await connection.write_and_wait(message["body"])
        else:
            connection.write(b"GET %b HTTP/1.1\r\nhost: x\r\n\r\n" % path)
        data = await connection.read()
        body = data[data.index(b"\r\n\r\n") + 4 :]
        if path.startswith(b"/events"):
            await send({"type": "http.response.start", "status": 200, "headers": _EVENTS})
            ended = False
            while not ended:
                ended = body.endswith(b"0\r\n\r\n")
                # Chunks come whole: a line with the length, and one with an event.
                events = b"".join(body.split(b"\r\n")[1::2])
                if events:
                    message = {"type": "http.response.body", "body": events, "more_body": True}
                    await send(message)
                if not ended:
                    body = await connection.read()
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        else:
            left = 2 if scope["method"] == "POST" else int(path[1:])
            headers = [*_BYTES, (b"content-length", b"%d" % left)]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            while True:
                left -= len(body)
                if body or not left:
                    await send({"type": "http.response.body", "body": body, "more_body": left > 0})
                if not left:
                    break
                body = await connection.read()
        idle.append(connection)

    return app


_EVENTS = [(b"content-type", b"text/event-stream")]
_BYTES = [(b"content-type", b"application/octet-stream")]


class BareConnection(asyncio.Protocol):
    MOST = 256 << 10  # bytes that wait for the caller before reading pauses

    def __init__(self) -> None:
        self._received = b""
        self._is_paused = False
        self._reader: asyncio.Future[bytes] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._may_write = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.write = self._transport.write

    def data_received(self, data: bytes) -> None:
        if self._reader is not None:
            self._reader.set_result(data)
            self._reader = None
            return
        self._received += data
        if len(self._received) >= self.MOST:
            self._is_paused = True
            self._transport.pause_reading()

    async def read(self) -> bytes:
        if self._received:
            data, self._received = self._received, b""
            if self._is_paused:
                self._is_paused = False
                self._transport.resume_reading()
            return data
        self._reader = asyncio.get_running_loop().create_future()
        return await self._reader

    def pause_writing(self) -> None:
        self._may_write = False

    def resume_writing(self) -> None:
        self._may_write = True
        if self._writer is not None:
            self._writer.set_result(None)
            self._writer = None

    async def write_and_wait(self, data: bytes) -> None:
        self.write(data)
        if not self._may_write:
            self._writer = asyncio.get_running_loop().create_future()
            await self._writer

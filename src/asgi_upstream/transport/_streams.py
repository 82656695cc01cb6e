"""What httpx and httpcore see of a connection: the stream of a body, and the network stream."""

import asyncio
from collections.abc import AsyncIterator, Generator
from contextlib import contextmanager
from typing import Any, ClassVar

import httpx

from .._httpx.flavors import ByteStreamBase, is_httpx_error
from ._connection import HTTP11Connection
from ._parser import ResponseHead


class ResponseStream(ByteStreamBase):
    """The stream of a response's body, whose end is the end of its exchange."""

    def __init__(self, network_stream: type[Any], connection: HTTP11Connection) -> None:
        self.head: ResponseHead = connection.head
        self.extensions: dict[str, Any] = {  # of the httpx or httpcore response
            "http_version": self.head.version,
            "reason_phrase": self.head.reason,
            "network_stream": network_stream(connection),
            "connection_reused": connection.request_count > 1,
        }
        self._connection: HTTP11Connection | None = connection

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            # What follows a 101 is for the network stream.
            while self._connection is not None and self.head.status != 101:
                if not (piece := self._connection.read_nowait() or await self._connection.read()):
                    break
                yield piece
        finally:
            await self.aclose()  # also for who forgets to, as httpcore does

    async def aclose(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.aclose()


class UpgradedStream:
    """The connection itself, for whom it was upgraded to (RFC 9110 7.8)."""

    httpcore: ClassVar[Any]

    def __init__(self, connection: HTTP11Connection) -> None:
        self._connection = connection
        self._exchange = connection.request_count  # the one that it is for
        self._write_lock = asyncio.Lock()  # several tasks may write, as with a WebSocket

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        self._connection.read_timeout = timeout
        with self._map_exceptions():
            return await self._connection.read(max_bytes)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if buffer:
            async with self._write_lock:
                with self._map_exceptions():
                    await self._connection.write(buffer, timeout)

    @contextmanager
    def _map_exceptions(self) -> Generator[None]:
        """Those of httpcore, which its users expect: they are named as httpx's."""
        if self._connection.request_count != self._exchange:
            raise self.httpcore.ReadError("the connection has been returned to the pool")
        try:
            yield
        except Exception as exc:
            if not is_httpx_error(exc, httpx.TransportError):
                raise
            kind = getattr(self.httpcore, type(exc).__name__, self.httpcore.ReadError)
            raise kind(str(exc)) from exc

    async def aclose(self) -> None:
        if self._connection.request_count == self._exchange:
            await self._connection.aclose()

    def get_extra_info(self, info: str) -> Any:
        name = {"client_addr": "sockname", "server_addr": "peername"}.get(info, info)
        return self._connection.get_extra_info(name)

"""The streams through which httpx and httpcore see a connection."""

import asyncio
from collections.abc import AsyncIterator, Generator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, ClassVar

import httpx

from .._httpx.exceptions import is_httpx_error
from .._httpx.flavors import ByteStreamBase
from ._connection import HTTP11Connection
from ._response_head import ResponseHead
from ._tracing import Tracer


class ResponseStream(ByteStreamBase):
    """A response body. The exchange ends when the stream ends or is closed.

    Attributes:
        extensions: The extensions of the httpx or httpcore response.
    """

    def __init__(self, network_stream: type[Any], connection: HTTP11Connection) -> None:
        self.head: ResponseHead = connection.head
        self.extensions: dict[str, Any] = {
            "http_version": self.head.version,
            "reason_phrase": self.head.reason,
            "network_stream": network_stream(connection),
            "connection_reused": connection.request_count > 1,
        }
        self._connection: HTTP11Connection | None = connection
        self._is_upgraded = connection.is_upgraded

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            while chunk := await self._read():
                yield chunk
        finally:
            await self.aclose()  # like httpcore, for callers that do not close the response

    async def _read(self) -> bytes:
        if self._connection is None or self._is_upgraded:
            return b""  # After an upgrade, the bytes belong to the network stream.
        return self._connection.read_nowait() or await self._connection.read()

    async def aclose(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.aclose()


class TracedResponseStream(ResponseStream):
    """Reports when the body starts and ends, and when it is closed."""

    def __init__(
        self, network_stream: type[Any], connection: HTTP11Connection, tracer: Tracer
    ) -> None:
        super().__init__(network_stream, connection)
        self._tracer = tracer

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            name, request = "http11.receive_response_body", self._tracer.request
            async with self._tracer.event(name, request=request):
                while chunk := await self._read():
                    yield chunk
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        if self._connection is not None:
            try:
                async with self._tracer.event("http11.response_closed"):
                    await super().aclose()
            finally:  # The trace function may fail or be cancelled.
                await super().aclose()


class UpgradedStream:
    """The raw connection after an upgrade to another protocol (RFC 9110 7.8).

    Attributes:
        core_name: The name of the httpcore whose exceptions are raised.
    """

    core_name: ClassVar[str]

    def __init__(self, connection: HTTP11Connection) -> None:
        self._connection = connection
        self._exchange = connection.request_count  # of the exchange that the stream belongs to
        self._write_lock = asyncio.Lock()  # several tasks may write, for example on a WebSocket

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
        """Raise httpcore's exceptions, which have the same names as httpx's."""
        if self._connection.request_count != self._exchange:
            read_error: type[Exception] = import_module(self.core_name).ReadError
            raise read_error("the connection has been returned to the pool")
        try:
            yield
        except Exception as exc:
            if not is_httpx_error(exc, httpx.TransportError):
                raise
            core = import_module(self.core_name)
            raise getattr(core, type(exc).__name__, core.ReadError)(str(exc)) from exc

    async def aclose(self) -> None:
        if self._connection.request_count == self._exchange:
            await self._connection.aclose()

    def get_extra_info(self, info: str) -> Any:
        name = {"client_addr": "sockname", "server_addr": "peername"}.get(info, info)
        return self._connection.get_extra_info(name)

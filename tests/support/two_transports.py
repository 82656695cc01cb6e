"""The same bytes to AsyncioTransport and to httpx's transport, and what each makes of them."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from asgi_upstream.transport._connection import ConnectionOwner, HTTP11Connection
from asgi_upstream.transport._pool_state import Origin
from asgi_upstream.transport._response_head import ReadState
from tests.support.flavor import AsyncioTransport, httpcore, httpx

_TLS = httpx.create_ssl_context(verify=False)  # made once, for it takes long


@dataclass
class Sent:
    """What the upstream sends, piece by piece, and whether it ends the connection then."""

    pieces: Sequence[bytes]
    ends: bool = True


@dataclass
class TransportResult:
    """What a caller sees of an exchange, and whether its connection was kept."""

    status: int | None = None
    version: bytes = b""
    reason: bytes = b""
    fields: list[tuple[bytes, bytes]] = field(default_factory=list[tuple[bytes, bytes]])
    body: bytes = b""
    error: type[Exception] | None = None
    kept: bool = False


class ScriptedSocket(asyncio.Transport):
    """Below AsyncioTransport: sends when it is written to."""

    def __init__(self, connection: HTTP11Connection, sent: Sent) -> None:
        super().__init__()
        self._connection = connection
        self._pieces = list(sent.pieces)
        self._ends = sent.ends
        self._loop = asyncio.get_running_loop()
        self._begun = self._paused = self._closed = False

    def write(self, data: Any) -> None:
        if not self._begun:
            self._begun = True
            self._loop.call_soon(self._next)

    def _next(self) -> None:
        if self._paused or self._closed:
            return
        if self._pieces:
            self._connection.data_received(self._pieces.pop(0))
            self._loop.call_soon(self._next)
        elif self._ends:
            self._connection.eof_received()
            self.abort()
        else:
            reader = self._connection._timeouts.reader
            if reader is not None and not reader.done():
                reader.set_exception(httpx.ReadTimeout(""))  # without the time that takes
            if self._connection._parser.state is not ReadState.IDLE:
                self._loop.call_soon(self._next)

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False
        self._loop.call_soon(self._next)

    def abort(self) -> None:
        if not self._closed:
            self._closed = True
            self._loop.call_soon(self._connection.connection_lost, None)


class ScriptedTransport(AsyncioTransport):
    def __init__(self, sent: Sent) -> None:
        super().__init__(verify=_TLS)
        self._sent = sent
        self._connector.open = self._open  # type: ignore[method-assign]

    async def _open(self, origin: Origin, owner: ConnectionOwner) -> HTTP11Connection:
        connection = HTTP11Connection(owner, asyncio.get_running_loop(), httpx)
        connection.connection_made(ScriptedSocket(connection, self._sent))
        return connection


class ScriptedStream(httpcore.AsyncNetworkStream):
    """Below the stock transport."""

    def __init__(self, sent: Sent) -> None:
        self._pieces = list(sent.pieces)
        self._ends = sent.ends
        self._closed = False

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        await asyncio.sleep(0)
        if self._closed:
            raise httpcore.ReadError
        if self._pieces:
            piece = self._pieces.pop(0)
            if len(piece) > max_bytes:
                self._pieces.insert(0, piece[max_bytes:])
            return piece[:max_bytes]
        if self._ends:
            return b""
        raise httpcore.ReadTimeout

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        pass

    async def aclose(self) -> None:
        self._closed = True

    def get_extra_info(self, info: str) -> Any:
        # As a socket's: at an end, or with bytes left to read.
        return (self._ends or bool(self._pieces)) if info == "is_readable" else None


class Backend(httpcore.AsyncNetworkBackend):
    def __init__(self, sent: Sent) -> None:
        self._sent = sent

    async def connect_tcp(self, *args: Any, **options: Any) -> httpcore.AsyncNetworkStream:
        return ScriptedStream(self._sent)


def fast(sent: Sent) -> AsyncioTransport:
    return ScriptedTransport(sent)


def stock(sent: Sent) -> httpx.AsyncHTTPTransport:
    transport = httpx.AsyncHTTPTransport(verify=_TLS)
    transport._pool = httpcore.AsyncConnectionPool(
        ssl_context=_TLS, network_backend=Backend(sent), keepalive_expiry=60
    )
    return transport


async def exchange(
    transport: httpx.AsyncHTTPTransport, method: str, sent: Sent, *, upgrade: bool = True
) -> TransportResult:
    outcome = TransportResult()
    fields = {"connection": "upgrade", "upgrade": "x"} if upgrade else {}
    request = httpx.Request(method, "http://upstream.example/", headers=fields)
    try:
        response = await transport.handle_async_request(request)
        outcome.status = response.status_code
        outcome.version = response.extensions["http_version"]
        outcome.reason = response.extensions["reason_phrase"]
        outcome.fields = response.headers.raw
        assert isinstance(response.stream, httpx.AsyncByteStream)
        try:
            async for piece in response.stream:
                outcome.body += piece
        finally:
            await response.aclose()
    except httpx.TransportError as exc:
        outcome.error = type(exc)
    for _ in range(len(sent.pieces) + 5):
        await asyncio.sleep(0)  # for what else is sent
    if isinstance(transport, AsyncioTransport):
        outcome.kept = transport.pool_state().idle > 0
    else:
        pool = transport._pool
        assert isinstance(pool, httpcore.AsyncConnectionPool)
        outcome.kept = any(one.is_idle() and not one.has_expired() for one in pool.connections)
    await transport.aclose()
    return outcome


def both(
    runner: asyncio.Runner, sent: Sent, method: str = "GET"
) -> tuple[TransportResult, TransportResult]:
    ours = runner.run(exchange(fast(sent), method, sent))
    theirs = runner.run(exchange(stock(sent), method, sent))
    return ours, theirs


def agree(ours: TransportResult, theirs: TransportResult) -> None:
    if theirs.error is httpx.ReadTimeout and ours.error is httpx.RemoteProtocolError:
        # It was known to be broken before its end had come.
        theirs.error = ours.error
    if ours.error is not None:
        # How much of a body comes before an error is a matter of how it is parsed.
        assert theirs.body.startswith(ours.body) or ours.body.startswith(theirs.body)
        theirs.body = ours.body
    # The stock transport rewrites the name of the coding.
    assert [
        (name, value.lower() if name.lower() == b"transfer-encoding" else value)
        for name, value in ours.fields
    ] == theirs.fields
    ours.fields = theirs.fields
    # A connection that might be kept may be closed.
    theirs.kept = theirs.kept and ours.kept
    assert ours == theirs


def refused(ours: TransportResult) -> bool:
    return ours.error is httpx.RemoteProtocolError and not ours.kept


OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"
EMPTY = b"content-length: 0\r\n\r\n"

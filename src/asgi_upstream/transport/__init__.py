"""AsyncioTransport: the transport of an `httpx.AsyncClient`, for HTTP/1.1 on asyncio, fast."""

import asyncio
import re
import ssl
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Any, Self, cast

import httpcore
import httpx

try:
    from .connection import Connection, Head, Outgoing
except ImportError as exc:
    if exc.name != "httptools":
        raise
    raise ImportError(
        "AsyncioTransport needs httptools: pip install 'asgi-upstream[fast]'", name="httptools"
    ) from exc
from .pool import Origin, Pool

__all__ = ["AsyncioTransport"]

_METHOD = re.compile(r"[-!#$%&'*+.^_`|~0-9a-zA-Z]+")
_TARGET = re.compile(rb"[\x21-\x7e]+")
_NAMES = re.compile(rb"(?:[-!#$%&'*+.^_`|~0-9a-zA-Z]+:)*")
_PORTS = {b"http": 80, b"https": 443, b"ws": 80, b"wss": 443}
# Those that may be sent twice (RFC 9110 9.2.2).
_IDEMPOTENT = frozenset(("GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"))
_HAPPY_EYEBALLS = 0.25  # seconds, as RFC 8305 8 recommends

# httpx's own default, which has no public name.
_LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=5.0)

Certificate = str | tuple[str, str] | tuple[str, str, str]
SocketOption = tuple[int, int, int] | tuple[int, int, bytes | bytearray]
RawHeaders = list[tuple[bytes, bytes]]
Trace = Callable[[str, dict[str, Any]], Awaitable[None]]


def _unpatched(cls: type[Any]) -> object:
    """Its `handle_async_request`, unless somebody has put another there, to mock or to trace."""
    method = cls.handle_async_request
    own = type(method) is types.FunctionType
    same_file = own and method.__code__.co_filename == cls.__init__.__code__.co_filename
    return method if same_file else None


_STOCK_TRANSPORT = _unpatched(httpx.AsyncHTTPTransport)
_STOCK_POOL = _unpatched(httpcore.AsyncConnectionPool)


class AsyncioTransport(httpx.AsyncHTTPTransport):
    """The transport of an `httpx.AsyncClient`, for HTTP/1.1 on asyncio, at a fraction of the cost.

        client_lifespan(transport=AsyncioTransport())

    It is seen by what patches httpx's transport or httpcore's pool: mocks and instrumentation.

    Arguments:
        limits: most connections, and idle ones, and the seconds that these are kept.
        retries: how often connecting is tried again.
        verify, cert, trust_env, uds, local_address, socket_options: as of
            `httpx.AsyncHTTPTransport`.

    Raises:
        ImportError: on import, without httptools: it comes with `asgi-upstream[fast]`.
        ValueError: at once, for `http2=True` or a proxy, which the stock transport is for.
        RuntimeError: when first used, if the event loop is not asyncio's, or later another one.
        httpx.TransportError: as the stock transport raises them.
    """

    def __init__(
        self,
        verify: ssl.SSLContext | str | bool = True,
        cert: Certificate | None = None,
        trust_env: bool = True,
        http1: bool = True,
        http2: bool = False,
        limits: httpx.Limits = _LIMITS,
        proxy: object = None,
        uds: str | None = None,
        local_address: str | None = None,
        retries: int = 0,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> None:
        if http2 or not http1:
            raise ValueError(
                "AsyncioTransport speaks HTTP/1.1 only: use httpx.AsyncHTTPTransport(http2=True), "
                "or leave transport= away and give http2=True to the client"
            )
        if proxy is not None:
            raise ValueError(
                "AsyncioTransport connects to no proxy: use httpx.AsyncHTTPTransport(proxy=...), "
                "or leave transport= away and give proxy= to the client"
            )
        context = httpx.create_ssl_context(verify=verify, cert=cert, trust_env=trust_env)
        context.set_alpn_protocols(["http/1.1"])
        self._pool = _SeenPool(
            self._exchange,
            ssl_context=context,
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            uds=uds,
            local_address=local_address,
            retries=retries,
            socket_options=socket_options,
        )
        self._connections = Pool(self._connect, limits)
        self._tls = context
        self._uds = uds
        self._local_address = local_address
        self._retries = retries
        self._socket_options = list(socket_options or ())
        self._loop: asyncio.AbstractEventLoop | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        upstream = await self.relay(request)
        if upstream is None:
            return await super().handle_async_request(request)  # to _SeenPool, in the end
        head = upstream.head
        return httpx.Response(
            head.status, headers=head.fields, stream=upstream, extensions=upstream.extensions
        )

    async def relay(self, request: httpx.Request) -> "_Body | None":
        """The response as bytes, for who needs no `httpx.Response`; None where others must see it.

        Others are those who have put themselves in the place of this class's, httpx's or
        httpcore's method.
        """
        if (
            type(self).handle_async_request is not _OWN
            or "handle_async_request" in vars(self)
            or httpx.AsyncHTTPTransport.handle_async_request is not _STOCK_TRANSPORT
            or httpcore.AsyncConnectionPool.handle_async_request is not _STOCK_POOL
        ):
            return None
        # A ForwardedRequest has these without making its URL and Headers.
        url: httpx.URL = getattr(request, "origin_url", None) or request.url
        fields: RawHeaders = getattr(request, "raw_fields", None) or request.headers.raw
        return await self._exchange(
            request.method,
            (url.raw_scheme, url.raw_host, url.port),
            url.raw_path,
            fields,
            request.stream,
            request.extensions,
        )

    async def _exchange(
        self,
        method: str,
        address: tuple[bytes, bytes, int | None],
        target: bytes,
        fields: RawHeaders,
        stream: object,
        extensions: Mapping[str, Any],
    ) -> "_Body":
        if self._loop is None or self._loop is not asyncio._get_running_loop():
            self._begin()
        scheme, host, port = address
        if scheme not in _PORTS:
            raise httpx.UnsupportedProtocol(f"{scheme.decode()!r} is not supported")
        origin = (scheme, host, port or _PORTS[scheme], extensions.get("sni_hostname"))
        timeouts: Mapping[str, float | None] = extensions.get("timeout", {})
        out = _outgoing(method, extensions.get("target", target), fields, stream, timeouts)
        again = False
        while True:
            connection = self._connections.idle(origin) if not again else None
            if connection is None:
                connection = await self._connections.wait(
                    origin, timeouts.get("pool"), timeouts.get("connect")
                )
            try:
                if "trace" in extensions:
                    head = await _traced(connection, out, extensions["trace"])
                else:
                    connection.send(out)
                    head = await connection.head()
            except BaseException as exc:
                await connection.finish()
                # It was closed while idle, and nobody had noticed yet (RFC 9112 9.3.1).
                stale = connection.exchanges > 1 and not connection.answered
                can_repeat = isinstance(out.content, bytes) and method in _IDEMPOTENT
                if again or not (stale and can_repeat and isinstance(exc, httpx.TransportError)):
                    raise
                again = True
            else:
                return _Body(connection, head, out.read_timeout)

    def _begin(self) -> None:
        """Stay with the event loop of the first use."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise RuntimeError(
                "AsyncioTransport runs on asyncio only: on trio leave transport= away, and httpx "
                "uses its own"
            ) from None
        if self._loop is not None:
            raise RuntimeError(
                "this AsyncioTransport was used in another event loop: make one for each, as "
                "client_lifespan does when its client is made by a factory"
            )
        self._loop = loop

    async def _connect(self, origin: Origin, timeout: float | None) -> Connection:
        for attempt in range(self._retries):
            try:
                return await self._connect_once(origin, timeout)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                await asyncio.sleep(attempt and 0.5 * 2 ** (attempt - 1))
        return await self._connect_once(origin, timeout)

    async def _connect_once(self, origin: Origin, timeout: float | None) -> Connection:
        try:
            async with asyncio.timeout(timeout):
                return await self._open(origin)
        except TimeoutError as exc:
            raise httpx.ConnectTimeout(str(exc)) from exc
        except (OSError, UnicodeError) as exc:
            raise httpx.ConnectError(str(exc)) from exc

    async def _open(self, origin: Origin) -> Connection:
        scheme, raw_host, port, sni = origin
        loop = asyncio.get_running_loop()
        host = raw_host.decode("ascii")
        tls: dict[str, Any] = {}
        if scheme in (b"https", b"wss"):
            tls = {"ssl": self._tls, "server_hostname": sni or host}

        def protocol() -> Connection:
            return Connection(self._connections, loop)

        if self._uds is not None:
            transport, connection = await loop.create_unix_connection(protocol, self._uds, **tls)
        else:
            if isinstance(loop, asyncio.BaseEventLoop):  # which uvloop's is not
                tls["happy_eyeballs_delay"] = _HAPPY_EYEBALLS
            local = (self._local_address, 0) if self._local_address else None
            transport, connection = await loop.create_connection(
                protocol, host, port, local_addr=local, **tls
            )
        for option in self._socket_options:
            transport.get_extra_info("socket").setsockopt(*option)
        return connection

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close every connection, whatever is under way on it."""
        self._connections.close()
        await self._pool.aclose()


_OWN = AsyncioTransport.handle_async_request


async def _traced(connection: Connection, out: Outgoing, trace: Trace) -> Head:
    """Tell `trace` as httpcore does, of what there is of that here."""
    await trace("http11.send_request_headers.started", {})
    connection.send(out)
    await trace("http11.send_request_headers.complete", {"return_value": None})
    await trace("http11.receive_response_headers.started", {})
    try:
        head = await connection.head()
    except Exception as exc:
        await trace("http11.receive_response_headers.failed", {"exception": exc})
        raise
    answer = (head.version, head.status, head.reason, head.fields)
    await trace("http11.receive_response_headers.complete", {"return_value": answer})
    return head


def _outgoing(
    method: str,
    target: bytes,
    fields: RawHeaders,
    stream: object,
    timeouts: Mapping[str, float | None],
) -> Outgoing:
    """The request as it is written (RFC 9112 3, 5, 6)."""
    length: int | None = 0
    chunked = has_host = False
    for name, value in fields:
        if len(name) in (4, 14, 17):
            key = name.lower()
            if key == b"host":
                has_host = True
            elif key == b"content-length":
                length = int(value) if value.isdigit() else -1
            elif key == b"transfer-encoding":
                chunked = True
    names = b"".join([name + b":" for name, _ in fields])
    head = b"%b %b HTTP/1.1\r\n%b\r\n" % (
        method.encode("ascii", "replace"),
        target,
        b"".join([b"%b: %b\r\n" % field for field in fields]),
    )
    lines = len(fields) + 2
    if not (_METHOD.fullmatch(method) and _TARGET.fullmatch(target) and _NAMES.fullmatch(names)):
        raise httpx.LocalProtocolError("malformed method, target or field name")
    if names.count(b":") != len(fields):
        raise httpx.LocalProtocolError("a colon in a field name")
    if head.count(b"\n") != lines or head.count(b"\r") != lines or b"\0" in head:
        raise httpx.LocalProtocolError("a line break or NUL in a field")
    if not has_host:
        raise httpx.LocalProtocolError("no Host field")
    if length == -1 or (chunked and length):
        raise httpx.LocalProtocolError("bad Content-Length")
    content: bytes | AsyncIterator[bytes]
    if isinstance(stream, httpx.ByteStream):
        content = b"".join(stream)
        if chunked:
            content = (b"%x\r\n%b\r\n" % (len(content), content) if content else b"") + b"0\r\n\r\n"
        elif len(content) != length:
            raise httpx.LocalProtocolError("the content is not as long as Content-Length says")
    else:
        content = aiter(cast(httpx.AsyncByteStream, stream))
    return Outgoing(
        method,
        head,
        content,
        None if chunked else length,
        timeouts.get("read"),
        timeouts.get("write"),
    )


class _Body(httpx.AsyncByteStream):
    """A response: its head, the stream of its body, and the end of its exchange."""

    __slots__ = ("_connection", "_timeout", "_upgraded", "head")

    def __init__(self, connection: Connection, head: Head, timeout: float | None) -> None:
        self.head = head
        self._connection: Connection | None = connection
        self._upgraded = connection
        self._timeout = timeout

    @property
    def extensions(self) -> dict[str, Any]:
        """Of the httpx or httpcore response."""
        return {
            "http_version": self.head.version,
            "reason_phrase": self.head.reason,
            "network_stream": _NetworkStream(self._upgraded),
        }

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self.head.status == 101:
            raise StopAsyncIteration  # what follows is for the network stream
        try:
            if piece := await self.read():
                return piece
        except BaseException:
            await self.aclose()  # also for who forgets to, as httpcore does
            raise
        await self.aclose()
        raise StopAsyncIteration

    async def read(self) -> bytes:
        """The next bytes; none at the end."""
        return b"" if self._connection is None else await self._connection.read(self._timeout)

    def take(self) -> bytes | None:
        """What `read` returns, if that is there already."""
        return b"" if self._connection is None else self._connection.take()

    def end(self) -> bool:
        """Whether the exchange is over: its body was read and its connection is another's."""
        if self._connection is not None and self._connection.keep():
            self._connection = None
        return self._connection is None

    async def aclose(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.finish()


class _NetworkStream(httpcore.AsyncNetworkStream):
    """The connection itself, for whom it was upgraded to (RFC 9110 7.8)."""

    __slots__ = ("_connection",)

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return await self._connection.read(timeout, max_bytes)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if buffer:
            await self._connection.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._connection.finish()

    def get_extra_info(self, info: str) -> Any:
        name = {"client_addr": "sockname", "server_addr": "peername"}.get(info, info)
        return self._connection.get_extra_info(name)


class _SeenPool(httpcore.AsyncConnectionPool):
    """Where the stock transport's method arrives when somebody has wrapped or mocked it."""

    def __init__(self, exchange: Any, **options: Any) -> None:
        super().__init__(**options)
        self._exchange = exchange

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        if httpcore.AsyncConnectionPool.handle_async_request is not _STOCK_POOL:
            return await super().handle_async_request(request)
        url = request.url
        upstream = await self._exchange(
            request.method.decode("ascii"),
            (url.scheme, url.host, url.port),
            url.target,
            request.headers,
            request.stream,
            cast(Mapping[str, Any], request.extensions),  # pyright: ignore[reportUnknownMemberType]
        )
        head = upstream.head
        return httpcore.Response(
            head.status, headers=head.fields, content=upstream, extensions=upstream.extensions
        )

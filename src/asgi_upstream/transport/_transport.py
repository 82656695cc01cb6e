"""AsyncioTransport: an HTTP/1.1 transport for httpx on asyncio."""

import asyncio
import ssl
import threading
from collections.abc import Awaitable, Iterable, Mapping
from contextlib import nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Self, cast

import httpx

from .._httpx.flavors import get_library
from .._httpx.requests import ForwardedRequest
from .._methods import IDEMPOTENT
from ._connect import SocketOption
from ._connection import HTTP11Connection
from ._connector import Connector
from ._flavor import Extensions, Flavor, InterceptedPool, get_origin
from ._pool import Pool
from ._pool_state import Origin, PoolState
from ._serializer import OutgoingRequest, serialize_request
from ._tracing import Tracer

_UNTRACED = nullcontext()

# httpx's default, which has no public name.
_LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=5.0)

Certificate = str | tuple[str, str] | tuple[str, str, str]

if TYPE_CHECKING:
    _Transport = httpx.AsyncHTTPTransport
else:
    _Transport = object  # subclasses add the library's AsyncHTTPTransport


class AsyncioTransportMixin(_Transport):
    """AsyncioTransport without the base class, which is httpx's or httpx2's."""

    _flavor: ClassVar[Flavor]

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
        *,
        max_connection_age: float | None = 3600.0,
    ) -> None:
        _check_options(http1, http2, proxy, max_connection_age)
        flavor = self._flavor
        context = flavor.library.create_ssl_context(verify=verify, cert=cert, trust_env=trust_env)
        context.set_alpn_protocols(["http/1.1"])
        self._pool_options: dict[str, object] = {
            "ssl_context": context,
            "max_connections": limits.max_connections,
            "max_keepalive_connections": limits.max_keepalive_connections,
            "keepalive_expiry": limits.keepalive_expiry,
            "uds": uds,
            "local_address": local_address,
            "retries": retries,
            "socket_options": socket_options,
        }
        self._connector = Connector(
            flavor.library, context, uds, local_address, retries, socket_options or ()
        )
        self._asyncio_pool = Pool(self._connector, limits, flavor.library, max_connection_age)
        self.trust_env: bool = trust_env
        self._thread: int | None = None  # the event loop's thread, once there is a loop
        self._loop = cast(asyncio.AbstractEventLoop, None)
        self._shared_url: httpx.URL | None = None
        self._shared_origin: Origin = (b"", b"", 0, None)

    @cached_property
    def _pool(self) -> InterceptedPool:  # type: ignore[override]
        return self._flavor.core.pool_class(self._flavor, self._send, **self._pool_options)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        library = self._flavor.library
        if get_library(type(request)) is not library:
            raise TypeError(
                f"this AsyncioTransport is for {library.__name__}: import it from "
                f"asgi_upstream.transport for httpx, from asgi_upstream.transport.httpx2 for httpx2"
            )
        opening = self.send_raw(request)
        if opening is None:
            return await super().handle_async_request(request)  # to `InterceptedPool`
        body = self._flavor.make_stream(await opening)
        return library.Response(
            body.head.status, headers=body.head.headers, stream=body, extensions=body.extensions
        )

    def send_raw(self, request: httpx.Request) -> Awaitable[HTTP11Connection] | None:
        """Send a request and return the connection, once awaited, with the head of the response.

        It saves an exchange the cost of an `httpx.Response`. The exchange must call the
        connection's `release` or `aclose`.

        Returns:
            None if a mock or tracer must see the request, or if it is not this library's.
        """
        flavor = self._flavor
        if (
            type(self).handle_async_request is not _ORIGINAL_HANDLE
            or "handle_async_request" in vars(self)
            or not flavor.is_intact()
            or get_library(type(request)) is not flavor.library
            or flavor.tracing.is_traced(request.extensions)
        ):
            return None
        extensions = request.extensions
        if isinstance(request, ForwardedRequest):  # without creating its URL and Headers
            origin, fields = self._find_shared_origin(request.origin_url), request.raw_headers
        else:
            origin, fields = self._find_origin(request.url), request.headers.raw
        target = extensions.get("target") or request.url.raw_path
        timeouts = extensions.get("timeout", {})
        outgoing = serialize_request(
            request.method, target, fields, request.stream, timeouts, flavor.library
        )
        return self._send(origin, outgoing, extensions)

    def _find_shared_origin(self, url: httpx.URL) -> Origin:
        """Return the origin of a URL that is usually the client's base URL.

        The last one is kept, unless it has a part that may be a secret.
        """
        if url is self._shared_url:
            return self._shared_origin
        origin = self._find_origin(url)
        if not (url.query or url.userinfo):
            self._shared_url, self._shared_origin = url, origin
        return origin

    def _find_origin(self, url: httpx.URL) -> Origin:
        return get_origin(self._flavor.library, url.raw_scheme, url.raw_host, url.port)

    async def _send(
        self,
        origin: Origin,
        outgoing: OutgoingRequest,
        extensions: Extensions,
        tracer: Tracer | None = None,
    ) -> HTTP11Connection:
        if threading.get_ident() != self._thread or not self._loop.is_running():
            self._bind_loop()
        if "sni_hostname" in extensions:
            origin = (*origin[:3], extensions["sni_hostname"])
        can_repeat = isinstance(outgoing.content, bytes) and outgoing.method in IDEMPOTENT
        retried = False
        while True:
            connection = None if retried else self._asyncio_pool.pop_idle(origin)
            if connection is None:
                connection = await self._acquire(origin, extensions, tracer)
            try:
                if tracer is not None:
                    await tracer.send(connection, outgoing)
                else:
                    connection.send(outgoing)
                    while not connection.has_head:
                        await connection.wait_readable()
                if not (can_repeat and not retried and connection.was_idle_too_long):
                    return connection
            except BaseException as exc:
                await connection.aclose()
                if retried or not (can_repeat and self._was_stale(connection, exc)):
                    raise
            else:
                await connection.aclose()
            retried = True

    async def _acquire(
        self, origin: Origin, extensions: Extensions, tracer: Tracer | None
    ) -> HTTP11Connection:
        """Wait for a connection, within the timeouts of the request."""
        timeouts: Mapping[str, float | None] = extensions.get("timeout", {})
        with _UNTRACED if tracer is None else tracer.cover_connect():
            return await self._asyncio_pool.acquire(
                origin, timeouts.get("pool"), timeouts.get("connect")
            )

    def _was_stale(self, connection: HTTP11Connection, exc: BaseException) -> bool:
        """Whether the upstream closed the connection while it was idle (RFC 9112 9.3.1)."""
        library = self._flavor.library
        was_used = connection.request_count > 1 and not connection.received_data
        return was_used and isinstance(exc, (library.RemoteProtocolError, library.ReadError))

    def _bind_loop(self) -> None:
        """Remember the event loop of the first use, and refuse others."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise RuntimeError(
                "AsyncioTransport runs on asyncio only: omit transport= on trio, and httpx uses "
                "its own"
            ) from None
        if self._thread is not None:
            raise RuntimeError(
                "this AsyncioTransport is in use in another event loop: close its client first, or "
                "omit transport=, and client_lifespan creates one at each startup"
            )
        self._loop, self._thread = loop, threading.get_ident()

    def pool_state(self) -> PoolState:
        """Return the numbers of open, idle and connecting connections, and of waiting requests."""
        return self._asyncio_pool.state()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close every connection, also those in use. Then another event loop may use it."""
        self._asyncio_pool.close()
        self._thread = None
        if "_pool" in vars(self):
            await self._pool.aclose()


_ORIGINAL_HANDLE = AsyncioTransportMixin.handle_async_request


def _check_options(
    http1: bool, http2: bool, proxy: object, max_connection_age: float | None
) -> None:
    if max_connection_age is not None and not max_connection_age > 0:
        raise ValueError("max_connection_age must be positive, or None")
    if http2 or not http1:
        raise ValueError(
            "AsyncioTransport speaks HTTP/1.1 only: use httpx.AsyncHTTPTransport(http2=True), "
            "or leave out transport= and give http2=True to the client"
        )
    if proxy is not None:
        raise ValueError(
            "AsyncioTransport does not support proxies: use "
            "httpx.AsyncHTTPTransport(proxy=...), or leave out transport= and give proxy= to "
            "the client"
        )


class AsyncioTransport(AsyncioTransportMixin, httpx.AsyncHTTPTransport):
    """A transport for `httpx.AsyncClient` that costs a fraction of httpx's own.

        client_lifespan(transport=AsyncioTransport(retries=2))

    It speaks HTTP/1.1 on asyncio and uvloop. `client_lifespan` creates one by default. Mocks and
    instrumentation that patch httpx's transport or httpcore's pool see its requests.

    Arguments:
        limits: The maximum numbers of connections and of idle connections, and the seconds for
            which an idle connection is kept.
        retries: How often a failed connect is repeated.
        max_connection_age: Seconds after which a connection is closed when it is released, so that
            a busy pool follows DNS. The time is up to a tenth shorter, at random. None sets no
            limit.
        verify, cert, trust_env, uds, local_address, socket_options: Same as in
            `httpx.AsyncHTTPTransport`.

    Raises:
        ValueError: For `http2=True` or a proxy, which need httpx's transport.
        RuntimeError: At the first request, if the event loop is not asyncio's or is another one.
        httpx.TransportError: The same as httpx's transport raises. See
            [docs/errors.md][asynciotransport-messages].
    """

    _flavor = Flavor(httpx, "httpcore")

"""The parts of the transport that are httpx's or httpx2's, and that mocks and tracers must see."""

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import httpcore

from .._httpx.flavors import subclass_for
from .._httpx.interception import MethodGuard
from .._httpx.interfaces import HTTPXModule
from ._connection import HTTP11Connection
from ._pool_state import Origin
from ._serializer import OutgoingRequest, serialize_request
from ._streams import ResponseStream, TracedResponseStream, UpgradedStream
from ._tracing import Tracer, TraceSettings

_DEFAULT_PORTS = {b"http": 80, b"https": 443, b"ws": 80, b"wss": 443}

Extensions = Mapping[str, Any]
SendRequest = Callable[
    [Origin, OutgoingRequest, Extensions, Tracer | None], Awaitable[HTTP11Connection]
]


class Flavor:
    """The classes for httpx or httpx2, and the methods that mocks and tracers replace."""

    def __init__(self, library: HTTPXModule, core: Any) -> None:
        self.library = library
        # respx replaces the method of the pool, Elastic APM that of the connection.
        core_methods = (
            (core.AsyncConnectionPool, "handle_async_request"),
            (core.AsyncHTTPConnection, "handle_async_request"),
        )
        self.core_methods = MethodGuard(*core_methods)
        self.all_methods = MethodGuard(
            (library.AsyncHTTPTransport, "handle_async_request"), *core_methods
        )
        self.tracing = TraceSettings(core.__name__)
        self._stream = subclass_for(ResponseStream, library.AsyncByteStream)
        self._traced_stream = subclass_for(TracedResponseStream, library.AsyncByteStream)
        self._network_stream = subclass_for(UpgradedStream, core.AsyncNetworkStream)
        self._network_stream.httpcore = core
        self.pool_class: type[InterceptedPool] = subclass_for(
            InterceptedPool, core.AsyncConnectionPool
        )
        self.response_class: type[httpcore.Response] = core.Response

    def make_stream(
        self, connection: HTTP11Connection, tracer: Tracer | None = None
    ) -> ResponseStream:
        """Return the stream of the response body on a connection."""
        if tracer is not None:
            return self._traced_stream(self._network_stream, connection, tracer)
        return self._stream(self._network_stream, connection)


def get_origin(library: HTTPXModule, scheme: bytes, host: bytes, port: int | None) -> Origin:
    """Return the origin of a URL, with the scheme's default port.

    Raises:
        httpx.UnsupportedProtocol: If the scheme is not http, https, ws or wss.
    """
    if scheme not in _DEFAULT_PORTS:
        raise library.UnsupportedProtocol(
            f"Request URL has an unsupported protocol {scheme.decode()!r}; use http or https"
        )
    return scheme, host, port or _DEFAULT_PORTS[scheme], None


if TYPE_CHECKING:
    _Pool = httpcore.AsyncConnectionPool
else:
    _Pool = object


class InterceptedPool(_Pool):
    """Takes the requests that come through httpx's transport, because it is wrapped or mocked.

    Those with a `trace` come here too, because the trace needs httpcore's request.
    """

    def __init__(self, flavor: Flavor, send: SendRequest, **options: Any) -> None:
        super().__init__(**options)
        self._flavor = flavor
        self._send = send

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        flavor = self._flavor
        if not flavor.core_methods.is_intact():
            return await super().handle_async_request(request)
        url, extensions = request.url, cast(Extensions, request.extensions)  # pyright: ignore
        out = serialize_request(
            request.method.decode("ascii"),
            extensions.get("target", url.target),
            request.headers,
            request.stream,
            extensions.get("timeout", {}),
            flavor.library,
        )
        origin = get_origin(flavor.library, url.scheme, url.host, url.port)
        tracer = None
        if flavor.tracing.is_traced(extensions):
            tracer = Tracer(request, flavor.tracing.loggers)
        body = flavor.make_stream(await self._send(origin, out, extensions, tracer), tracer)
        return flavor.response_class(
            body.head.status, headers=body.head.headers, content=body, extensions=body.extensions
        )

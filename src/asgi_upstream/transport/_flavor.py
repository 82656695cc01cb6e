"""The parts of the transport that are httpx's or httpx2's, and that mocks and tracers must see.

httpcore is imported only when it is needed, because that takes a fifth of an app's start. Usually a
mock or a tracer has imported it.
"""

import sys
from collections.abc import Awaitable, Callable, Mapping
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from .._httpx.flavors import subclass_for
from .._httpx.interception import MethodGuard
from .._httpx.interfaces import HTTPXModule
from ._connection import HTTP11Connection
from ._pool_state import Origin
from ._serializer import OutgoingRequest, serialize_request
from ._streams import ResponseStream, TracedResponseStream, UpgradedStream
from ._tracing import Tracer, TraceSettings

_DEFAULT_PORTS = {b"http": 80, b"https": 443, b"ws": 80, b"wss": 443}

if TYPE_CHECKING:
    import httpcore

    _Pool = httpcore.AsyncConnectionPool
else:
    _Pool = object

Extensions = Mapping[str, Any]
SendRequest = Callable[
    [Origin, OutgoingRequest, Extensions, Tracer | None], Awaitable[HTTP11Connection]
]


class Core:
    """The parts that are httpcore's or httpcore2's."""

    def __init__(self, core: Any, network_stream: type[UpgradedStream]) -> None:
        # respx replaces the method of the pool, Elastic APM that of the connection.
        self.methods = MethodGuard(
            (core.AsyncConnectionPool, "handle_async_request"),
            (core.AsyncHTTPConnection, "handle_async_request"),
        )
        self.network_stream = subclass_for(network_stream, core.AsyncNetworkStream)
        self.pool_class: type[InterceptedPool] = subclass_for(
            InterceptedPool, core.AsyncConnectionPool
        )
        self.response_class: type[httpcore.Response] = core.Response


class Flavor:
    """The classes for httpx or httpx2, and the methods that mocks and tracers replace.

    Arguments:
        library: httpx or httpx2.
        core_name: The name of its httpcore.
    """

    def __init__(self, library: HTTPXModule, core_name: str) -> None:
        self.library = library
        self.tracing = TraceSettings(core_name)
        self._core_name = core_name
        self._transport_method = MethodGuard((library.AsyncHTTPTransport, "handle_async_request"))
        self._stream = subclass_for(ResponseStream, library.AsyncByteStream)
        self._traced_stream = subclass_for(TracedResponseStream, library.AsyncByteStream)
        self._network_stream: type[UpgradedStream] = type(
            "UpgradedStream", (UpgradedStream,), {"core_name": core_name}
        )

    @cached_property
    def core(self) -> Core:
        """The parts that need httpcore, which is imported."""
        return Core(import_module(self._core_name), self._network_stream)

    @property
    def is_core_loaded(self) -> bool:
        """Whether the app or a tool has imported httpcore."""
        return self._core_name in sys.modules

    def is_intact(self) -> bool:
        """Whether no mock and no tracer has replaced a method of httpx or httpcore."""
        return self._transport_method.is_intact() and (
            not self.is_core_loaded or self.core.methods.is_intact()
        )

    def make_stream(
        self, connection: HTTP11Connection, tracer: Tracer | None = None
    ) -> ResponseStream:
        """Return the stream of the response body on a connection."""
        network_stream = self._network_stream
        if connection.is_upgraded or self.is_core_loaded:
            network_stream = self.core.network_stream
        if tracer is not None:
            return self._traced_stream(network_stream, connection, tracer)
        return self._stream(network_stream, connection)


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


class InterceptedPool(_Pool):
    """Takes the requests that come through httpx's transport, because it is wrapped or mocked.

    Those with a `trace` come here too, because the trace needs httpcore's request.
    """

    def __init__(self, flavor: Flavor, send: SendRequest, **options: Any) -> None:
        super().__init__(**options)
        self._flavor = flavor
        self._send = send

    async def handle_async_request(self, request: "httpcore.Request") -> "httpcore.Response":
        flavor = self._flavor
        if not flavor.core.methods.is_intact():
            return await super().handle_async_request(request)
        url, extensions = request.url, cast(Extensions, request.extensions)  # pyright: ignore
        outgoing = serialize_request(
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
        body = flavor.make_stream(await self._send(origin, outgoing, extensions, tracer), tracer)
        return flavor.core.response_class(
            body.head.status, headers=body.head.headers, content=body, extensions=body.extensions
        )

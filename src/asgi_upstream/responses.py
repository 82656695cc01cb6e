"""The responses that endpoints return. Each describes an exchange, which happens in its call."""

from collections.abc import Mapping, Sequence
from typing import Any, Generic, Self, TypedDict, Unpack, cast, overload

import httpx
from starlette.background import BackgroundTask
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ._exchange.exchange import Exchange
from ._exchange.options import (
    BodyTransform,
    ExchangeOptions,
    ResponseHook,
    StreamErrorHook,
    SupportsSend,
)
from ._exchange.validation import (
    validate_callables,
    validate_request,
    validate_size,
    validate_values,
)
from ._httpx.flavors import get_library, match_library
from ._httpx.interfaces import AnyClient, RequestT, ResponseT
from .records import Observer


class _UpstreamStatus(int):
    """The default of `status_code`, which relays the upstream's status.

    It is an int, because FastAPI reads the default of a `response_class` for the OpenAPI schema.
    """


UPSTREAM_STATUS = _UpstreamStatus(200)


class SharedOptions(TypedDict, Generic[ResponseT], total=False):
    """The keyword arguments that an app may share among all its responses."""

    status_code: int | None
    media_type: str | None
    decode: bool
    transform: BodyTransform | None
    on_response: ResponseHook[ResponseT] | None
    deadline: float | None
    on_stream_error: StreamErrorHook | None
    heartbeat: float | None
    observers: Sequence[Observer]


class ResponseOptions(SharedOptions[ResponseT], total=False):
    """The keyword arguments of both responses.

    A buffered response has no `on_stream_error` and no `heartbeat`.
    """

    headers: Mapping[str, str] | None
    background: BackgroundTask | None


class FromResponseOptions(ResponseOptions[ResponseT], total=False):
    """The keyword arguments of `from_response`. Only a buffered response has `max_bytes`."""

    max_bytes: int


class _UpstreamResponse(Response):
    """The base of both responses. The whole exchange happens in `__call__`."""

    @overload
    def __init__(
        self,
        client: httpx.AsyncClient,
        request: httpx.Request,
        **options: Unpack[ResponseOptions[httpx.Response]],
    ) -> None: ...
    @overload
    def __init__(
        self,
        client: AnyClient[RequestT, ResponseT],
        request: RequestT,
        **options: Unpack[ResponseOptions[ResponseT]],
    ) -> None: ...
    def __init__(
        self,
        client: AnyClient[Any, Any],
        request: Any = None,  # the default is only for the error that says what is missing
        *,
        status_code: int | None = UPSTREAM_STATUS,
        headers: Mapping[str, str] | None = None,
        media_type: str | None = None,
        decode: bool = False,
        transform: BodyTransform | None = None,
        on_response: ResponseHook[Any] | None = None,
        deadline: float | None = None,
        on_stream_error: StreamErrorHook | None = None,
        heartbeat: float | None = None,
        observers: Sequence[Observer] = (),
        background: BackgroundTask | None = None,
    ) -> None:
        name = type(self).__name__
        if status_code is UPSTREAM_STATUS:
            status_code = None
        validate_request(name, client, request)
        if transform or on_response or on_stream_error:
            validate_callables(
                transform=transform, on_response=on_response, on_stream_error=on_stream_error
            )
        validate_values(status_code, deadline, heartbeat, observers)
        self._options = ExchangeOptions(
            cast(SupportsSend, client),
            request,
            match_library(type(client), type(request)),  # pyright: ignore
            decode,
            transform,
            on_response,
            deadline,
            on_stream_error,
            observers,
            heartbeat,
        )
        # Like that of any Response, it may be set later. None relays the upstream's status.
        self.status_code: int = cast(int, status_code)
        self.media_type = media_type
        self.background = background
        if headers is None and media_type is None:
            self.raw_headers: list[tuple[bytes, bytes]] = []
        else:
            self.init_headers(headers)

    @classmethod
    def from_response(
        cls, upstream: ResponseT, **options: Unpack[FromResponseOptions[ResponseT]]
    ) -> Self:
        """Relay a response that you opened yourself with `client.send(request, stream=True)`.

        Return the result at once. Until the server calls it, you must close `upstream`.

        Arguments:
            upstream: The open response.
            options: The arguments of the class, without `client` and `request`.

        Raises:
            RuntimeError: If the body was read and not kept. When called, if it was called before.
        """
        response = cast(httpx.Response, upstream)
        client = cast("AnyClient[httpx.Request, ResponseT]", _OpenResponseClient(response))
        return cls(client, response.request, **options)  # type: ignore

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(self._options, self.status_code, self.raw_headers)
        if await exchange.run(scope, receive, send) and self.background is not None:
            await self.background()


# Python names this function if an argument is unexpected, and users know this class.
_UpstreamResponse.__init__.__qualname__ = "StreamedResponse.__init__"
_OPTION_NAMES = frozenset(ResponseOptions.__annotations__)


class StreamedResponse(_UpstreamResponse):
    """Answers with the upstream's response, chunk by chunk as it arrives.

        return StreamedResponse(client, client.build_request("GET", "/report"))

    The server calls the response after the endpoint has returned it. Only then is the request sent.
    Status, end-to-end headers (RFC 9110 7.6.1) and body are relayed, with back-pressure. If the
    caller disconnects, the exchange is cancelled.

    Arguments:
        client: The shared client. Its auth, event hooks, mounts and proxies apply.
        request: The request to send, from `client.build_request(...)`.
        status_code: The status for the caller. Default: the upstream's.
        headers: Headers for the caller. Each replaces the upstream's headers of the same name. So
            do headers that you set on the response later. `set_cookie` adds a cookie.
        media_type: The content type for the caller. Default: the upstream's.
        decode: Whether to relay the decoded body, without `content-encoding` and `content-length`.
        transform: A function that gets an async iterator of decoded bytes and returns another
            iterator of bytes.
        on_response: Called with the upstream's `httpx.Response` before anything is sent, async or
            not. It may raise, change `upstream.headers`, or return a response to send instead. The
            other arguments do not apply to that response.
        deadline: Seconds for the whole exchange, including the time in which the caller reads.
        on_stream_error: Called with the exception if the body fails after it has started. The
            bytes that it returns end the body properly. It implies `decode`, and no
            `content-length`. Without it, the caller's connection is closed, so that the caller
            notices the truncation.
        heartbeat: Seconds of silence after which a comment is sent in an event stream
            (`text/event-stream`), between two events. Then the body is decoded and has no
            `content-length`. Other media types are not changed.
        observers: Functions that get the `ExchangeRecord` when the exchange has ended, besides
            those of the client.
        background: A task that runs after the server has accepted the complete response. It does
            not run after an exception or a disconnect.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument has an invalid value.
        UpstreamError: When called, if the upstream fails before the response has started. It is an
            `HTTPException` with the status 502, 503 or 504, see
            [docs/errors.md][what-callers-get]. After the start of the response it is
            raised too, so that the server closes the connection.
        RuntimeError: When called again, if the request's body can be sent only once.
    """


class BufferedResponse(_UpstreamResponse):
    """Answers with the upstream's response when its whole body has arrived.

        return BufferedResponse(client, client.build_request("GET", "/item"))

    So every failure of the upstream is an error status, and `content-length` is always set. The
    arguments are those of `StreamedResponse` without `on_stream_error` and `heartbeat`. These
    differ:

    Arguments:
        max_bytes: Maximum body size in bytes, after decoding if the body is decoded. A larger body
            is a 502.
        on_response: Called when the body has arrived. The body is decoded, so that
            `upstream.json()` and `upstream.text` work, and relayed decoded.
    """

    @overload
    def __init__(
        self,
        client: httpx.AsyncClient,
        request: httpx.Request,
        *,
        max_bytes: int = 10 * 1024 * 1024,
        **options: Unpack[ResponseOptions[httpx.Response]],
    ) -> None: ...
    @overload
    def __init__(
        self,
        client: AnyClient[RequestT, ResponseT],
        request: RequestT,
        *,
        max_bytes: int = 10 * 1024 * 1024,
        **options: Unpack[ResponseOptions[ResponseT]],
    ) -> None: ...
    def __init__(
        self,
        client: AnyClient[Any, Any],
        request: Any = None,
        *,
        status_code: int | None = UPSTREAM_STATUS,
        max_bytes: int = 10 * 1024 * 1024,
        **options: Any,
    ) -> None:
        if not _OPTION_NAMES.issuperset(options):
            name = next(name for name in options if name not in _OPTION_NAMES)
            raise TypeError(
                f"BufferedResponse.__init__() got an unexpected keyword argument {name!r}"
            )
        if options.get("on_stream_error") is not None:
            raise TypeError(
                "BufferedResponse has no on_stream_error, because it sends nothing before the "
                "whole body is there: handle UpstreamError, or use "
                "StreamedResponse(on_stream_error=...)"
            )
        if options.get("heartbeat") is not None:
            raise TypeError(
                "BufferedResponse has no heartbeat, because it sends nothing before the whole body "
                "is there: use StreamedResponse(heartbeat=...)"
            )
        validate_size("max_bytes", max_bytes)
        super().__init__(client, request, status_code=status_code, **options)
        self._options.max_bytes = max_bytes


class _OpenResponseClient:
    """Takes the place of a client, and returns a response that is already open, once."""

    def __init__(self, upstream: httpx.Response) -> None:
        if upstream.is_stream_consumed or upstream.is_closed:
            try:
                _ = upstream.content
            except get_library(type(upstream)).ResponseNotRead:
                raise RuntimeError(
                    "from_response() needs a response whose body was not read, or was read with "
                    "`await response.aread()`, and the body of this one is gone: open it with "
                    "client.send(request, stream=True)"
                ) from None
        self._upstream: httpx.Response | None = upstream

    async def send(
        self, request: httpx.Request, *, stream: bool, **options: bool
    ) -> httpx.Response:
        if self._upstream is None:
            raise RuntimeError(
                "a response from from_response() can be sent to one caller only: write "
                "StreamedResponse(client, request) to send a request in each call"
            )
        upstream, self._upstream = self._upstream, None
        return upstream

    async def aclose(self) -> None:
        """Do nothing. This method tells that the client is async."""

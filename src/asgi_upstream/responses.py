"""The responses that endpoints return: descriptions of an exchange that is still to happen."""

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
from ._httpx.flavors import describe_type, get_library, match_library
from ._httpx.interfaces import AnyClient, RequestT, ResponseT
from ._httpx.requests import request_origin
from .records import Observer, check_observers


class _UpstreamStatus(int):
    """The default of `status_code`: relay the upstream's.

    It is an int, because FastAPI reads the default of a `response_class` for the OpenAPI schema.
    """


UPSTREAM_STATUS = _UpstreamStatus(200)


class SharedOptions(TypedDict, Generic[ResponseT], total=False):
    """The keyword arguments that an app may hold for all its responses."""

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

    `on_stream_error` and `heartbeat` are for streamed ones.
    """

    headers: Mapping[str, str] | None
    background: BackgroundTask | None


class FromResponseOptions(ResponseOptions[ResponseT], total=False):
    """The keyword arguments of `from_response`; `max_bytes` is for buffered responses."""

    max_bytes: int


class _UpstreamResponse(Response):
    """What both share: the whole exchange happens in the call."""

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
        request: Any = None,  # a default only for the errors below to say what is missing
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
            _validate_callables(
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
        # An attribute that may be set later, as of any Response; None is for the upstream's.
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
        """The same for a response that you opened yourself, with `client.send(stream=True)`.

        It is yours to close until the server calls this response, so return it at once.

        Raises:
            RuntimeError: at once, if its body is gone; when called, if it was relayed before.
        """
        adopted = cast(httpx.Response, upstream)
        client = cast("AnyClient[httpx.Request, ResponseT]", _OpenResponseClient(adopted))
        return cls(client, adopted.request, **options)  # type: ignore

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(self._options, self.status_code, self.raw_headers)
        if await exchange.run(scope, receive, send) and self.background is not None:
            await self.background()


def validate_request(name: str, client: object, request: Any) -> None:
    """Refuse arguments that are not an async client and a request with a host.

    Arguments:
        name: The class or function that was called.
        client: What should be an httpx client.
        request: What should be an httpx request.

    Raises:
        TypeError, ValueError: As `StreamedResponse`.
    """
    if not hasattr(client, "aclose"):
        raise TypeError(
            f"{name} needs an httpx.AsyncClient, not {describe_type(client)}: write "
            f"{name}(client, "
            f"request) with one that client_lifespan() shares, or use a sync client in a `def` "
            f"endpoint and return a Response"
        )
    if not (hasattr(request, "extensions") and hasattr(request, "method")):
        raise TypeError(
            f"{name} needs the httpx.Request to send, not {describe_type(request)}: write "
            f"{name}(client, client.build_request('GET', url)), or for a response that is open "
            f"StreamedResponse.from_response(response)"
        )
    if not request_origin(request).raw_host:
        raise ValueError(
            f"the request for {str(request.url)!r} has no host: give the client a base_url= "
            f"such as 'https://api.example', or the request a full URL"
        )


def validate_options(options: SharedOptions[Any]) -> None:
    """Refuse what makes no sense, before there is a request to use it on.

    Raises:
        TypeError, ValueError: as of `StreamedResponse`.
    """
    functions = ("transform", "on_response", "on_stream_error")
    _validate_callables(**{name: options.get(name) for name in functions})
    validate_values(
        options.get("status_code"),
        options.get("deadline"),
        options.get("heartbeat"),
        options.get("observers", ()),
    )


def validate_values(
    status_code: int | None,
    deadline: float | None,
    heartbeat: float | None,
    observers: Sequence[Observer],
) -> None:
    """Refuse values that make no sense.

    Raises:
        TypeError, ValueError: As `StreamedResponse`.
    """
    if observers:
        check_observers(observers)
    if deadline is not None and not _is_positive(deadline):
        raise ValueError(f"deadline={deadline!r}: give seconds above 0, or None for none")
    if heartbeat is not None and not _is_positive(heartbeat):
        raise ValueError(f"heartbeat={heartbeat!r}: give seconds above 0, or None for none")
    if status_code is not None and not 200 <= status_code < 600:
        raise ValueError(f"status_code={status_code!r}: give a final status, 200 to 599")


def validate_max_bytes(max_bytes: int) -> None:
    """Refuse a limit that is not a positive number.

    Raises:
        ValueError: If it is not.
    """
    if not (isinstance(max_bytes, int) and max_bytes > 0):  # pyright: ignore
        raise ValueError(f"max_bytes={max_bytes!r}: give a number of bytes above 0")


def _is_positive(seconds: object) -> bool:
    return isinstance(seconds, int | float) and seconds > 0


def _validate_callables(**functions: object) -> None:
    for argument, value in functions.items():
        if value is not None and not callable(value):
            raise TypeError(f"{argument}={value!r}: give a function")


class StreamedResponse(_UpstreamResponse):
    """Answers with the upstream's response, chunk by chunk as it arrives.

        return StreamedResponse(client, client.build_request("GET", "/report"))

    Nothing is sent or open until the server calls the response. Then the request is sent, and
    status, end-to-end headers (RFC 9110 7.6.1) and body are relayed, with back-pressure. A caller
    who leaves cancels the exchange at any moment.

    Arguments:
        client: the shared client; its auth, event hooks, mounts and proxies apply.
        request: what to send, from `client.build_request(...)`.
        status_code: instead of the upstream's.
        headers: on top of the upstream's, each in place of those of its name. So are headers set
            on the object later; `set_cookie` adds one.
        media_type: the content type, instead of the upstream's.
        decode: relay the decoded body, without its `content-encoding` and `content-length`.
        transform: a function from an async iterator of decoded bytes to another of bytes.
        on_response: called with the upstream's `httpx.Response` before anything is sent; async or
            not. It may raise, change `upstream.headers`, or return a response to send instead, as
            it is: the arguments here do not apply to that.
        deadline: seconds for the whole exchange, the caller's reading included.
        on_stream_error: a function from the exception to the last bytes of a body that fails after
            its start; the body then ends properly. Implies `decode`, and no `content-length`.
            Without it the connection to the caller is cut, which is how HTTP shows truncation.
        heartbeat: Seconds of silence after which a comment is sent in an event stream
            (`text/event-stream`), between two events. Then the body is decoded and has no
            `content-length`. Other media types are left alone.
        observers: functions that get the `ExchangeRecord` of the exchange at its end, besides
            those of the client.
        background: runs when the server took the whole response; not after an exception, and not
            for a caller who left.

    Raises:
        TypeError, ValueError: at once, for arguments that make no sense. Causes and fixes:
            [docs/errors.md][when-the-app-is-written-or-started].
        UpstreamError: when called, if the upstream fails before the response started: an
            `HTTPException` with status 502, 503 or 504. After that, to cut the connection.
        RuntimeError: when called again, if the request's body can be sent only once.
    """


class BufferedResponse(_UpstreamResponse):
    """Answers with the upstream's response once all of it is there.

        return BufferedResponse(client, client.build_request("GET", "/item"))

    So every failure of the upstream is a clean error status, and `content-length` is always set.
    The arguments are those of `StreamedResponse`, without `on_stream_error`, and with these:

    Arguments:
        max_bytes: the longest body that is read, in bytes, decoded where it is decoded. Past that
            reading stops and the answer is 502.
        on_response: called when the body is there, and decoded: `upstream.json()` and `.text`
            work, and what was decoded is relayed so.
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
        if options.get("on_stream_error") is not None:
            raise TypeError(
                "BufferedResponse has no on_stream_error, for it sends nothing before "
                "the whole body "
                "is there: handle UpstreamError, or use StreamedResponse(on_stream_error=...)"
            )
        if options.get("heartbeat") is not None:
            raise TypeError(
                "BufferedResponse has no heartbeat, because it sends nothing before the whole body "
                "is there: use StreamedResponse(heartbeat=...)"
            )
        validate_max_bytes(max_bytes)
        super().__init__(client, request, status_code=status_code, **options)
        self._options.max_bytes = max_bytes


class _OpenResponseClient:
    """In place of a client: hands out a response that is open already, once."""

    def __init__(self, upstream: httpx.Response) -> None:
        if upstream.is_stream_consumed or upstream.is_closed:
            try:
                _ = upstream.content
            except get_library(type(upstream)).ResponseNotRead:
                raise RuntimeError(
                    "from_response() needs a response that is open and not read, or "
                    "read whole, and this "
                    "one's body is gone: open it with client.send(request, stream=True)"
                ) from None
        self._upstream: httpx.Response | None = upstream

    async def send(
        self, request: httpx.Request, *, stream: bool, **options: bool
    ) -> httpx.Response:
        if self._upstream is None:
            raise RuntimeError(
                "an adopted response can be sent to one caller only: make it from a client and a "
                "request, StreamedResponse(client, request), to have an exchange for each call"
            )
        upstream, self._upstream = self._upstream, None
        return upstream

    async def aclose(self) -> None:
        """Only says that this is no sync client; whoever opened the response closes it."""

"""An ASGI app that forwards each request to an upstream."""

from collections.abc import Collection
from functools import partial
from typing import Any, Unpack, overload

import httpx
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from .._exchange.validation import validate_options, validate_seconds, validate_size
from .._hooks import maybe_await
from .._httpx.flavors import get_library
from .._httpx.interfaces import RequestT, ResponseT
from .._logging import logger
from .._methods import NEVER_FORWARDED, USUAL
from ..responses import SharedOptions, StreamedResponse
from . import rewriting
from .outgoing import ClientName, OnRequest, RequestBuilder
from .request import BODY_TIMEOUT, MAX_MESSAGE_BYTES, HeaderOverrides, forward_request
from .target import split_prefix


class ReverseProxy:
    """An ASGI app that forwards each request to an upstream. Mount it, or use it in a route.

        app.mount("/api", ReverseProxy())

    WebSockets are relayed as with `relay_websocket`, if the extra `ws` is installed. Otherwise the
    handshake is refused (403). `methods`, `body_timeout`, the two rewrites and the response options
    except `observers` do not apply to them.

    Arguments:
        name: The client's name in the lifespan state. Or a function, async or not, that gets the
            connection and returns the name.
        prefix: Same as in `forward_request`.
        methods: Methods to forward. GET includes HEAD. Other methods get a 405. Default: all except
            CONNECT and TRACE, which are never forwarded (RFC 9110 9.3.6, 9.3.8).
        headers: Same as in `forward_request`.
        trust_forwarded_headers: Same as in `forward_request`.
        preserve_host: Same as in `forward_request`.
        body_timeout: Same as in `forward_request`.
        on_request: Called with the request to the upstream before it is sent, async or not. It may
            change the request, return another one, or return a response for the caller.
        rewrite_redirects: Whether to map Location, Content-Location, Refresh and Link back under
            the mount if they name the upstream, or the caller's host, which the upstream got in
            X-Forwarded-Host. A path that is already under the mount stays as it is.
        rewrite_cookies: Whether to map the Path of the upstream's cookies under the mount, and to
            drop their Domain.
        max_message_bytes: Same as in `relay_websocket`.
        ping_interval: Same as in `relay_websocket`.
        options: Same as in `StreamedResponse`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument has an invalid value.
    """

    @overload
    def __init__(
        self,
        name: ClientName = "client",
        *,
        prefix: str | None = None,
        methods: Collection[str] | None = None,
        headers: HeaderOverrides | None = None,
        trust_forwarded_headers: bool = False,
        preserve_host: bool = False,
        body_timeout: float | None = BODY_TIMEOUT,
        on_request: OnRequest[httpx.Request] | None = None,
        rewrite_redirects: bool = False,
        rewrite_cookies: bool = False,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        ping_interval: float | None = None,
        **options: Unpack[SharedOptions[httpx.Response]],
    ) -> None: ...
    @overload
    def __init__(
        self,
        name: ClientName = "client",
        *,
        prefix: str | None = None,
        methods: Collection[str] | None = None,
        headers: HeaderOverrides | None = None,
        trust_forwarded_headers: bool = False,
        preserve_host: bool = False,
        body_timeout: float | None = BODY_TIMEOUT,
        on_request: OnRequest[RequestT] | None = None,
        rewrite_redirects: bool = False,
        rewrite_cookies: bool = False,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        ping_interval: float | None = None,
        **options: Unpack[SharedOptions[ResponseT]],
    ) -> None: ...
    def __init__(
        self,
        name: ClientName = "client",
        *,
        prefix: str | None = None,
        methods: Collection[str] | None = None,
        headers: HeaderOverrides | None = None,
        trust_forwarded_headers: bool = False,
        preserve_host: bool = False,
        body_timeout: float | None = BODY_TIMEOUT,
        on_request: OnRequest[Any] | None = None,
        rewrite_redirects: bool = False,
        rewrite_cookies: bool = False,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        ping_interval: float | None = None,
        **options: Unpack[SharedOptions[Any]],
    ) -> None:
        _validate_options(methods, body_timeout, max_message_bytes, ping_interval, options)
        self._requests = RequestBuilder(
            name,
            headers,
            on_request,
            prefix=prefix,
            trust_forwarded_headers=trust_forwarded_headers,
            preserve_host=preserve_host,
        )
        self._prefix = prefix
        self._methods = None if methods is None else _add_head(methods)
        self._body_timeout = body_timeout
        self._rewrite_redirects = rewrite_redirects
        self._rewrite_cookies = rewrite_cookies
        self._max_message_bytes = max_message_bytes
        self._ping_interval = ping_interval
        self._options = options

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _handle_lifespan(receive, send)
        elif "starlette.exception_handlers" in scope:
            await self._handle(scope, receive, send)
        else:
            await _answer_errors(self._handle, scope, receive, send)

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._relay_websocket(WebSocket(scope, receive, send))
            return
        response = await self.respond(Request(scope, receive, send))
        await response(scope, receive, send)

    async def respond(
        self, request: Request, *, headers: HeaderOverrides | None = None
    ) -> Response:
        """Return the response to a request, for an endpoint that does more than forward.

        Arguments:
            request: The caller's request.
            headers: Headers for this request, like `headers` of `forward_request`. They are applied
                after those of the proxy.

        Raises:
            HTTPException: 400, 404 or 405 for a request that is not forwarded.
        """
        self._check_method(request.method)
        forward = partial(forward_request, body_timeout=self._body_timeout)
        client, outgoing = await self._requests.build(request, forward, headers)
        if isinstance(outgoing, Response):
            return outgoing
        options = self._options.copy()
        if self._rewrite_redirects or self._rewrite_cookies:
            options["on_response"] = partial(
                self._rewrite, client.base_url, request.scope, outgoing.headers
            )
        return StreamedResponse(client, outgoing, **options)  # pyright: ignore

    def _check_method(self, method: str) -> None:
        methods = self._methods
        if method in NEVER_FORWARDED or (methods is not None and method not in methods):
            allowed = sorted((USUAL if methods is None else methods) - NEVER_FORWARDED)
            raise HTTPException(405, headers={"allow": ", ".join(allowed)})

    async def _relay_websocket(self, websocket: WebSocket) -> None:
        try:
            from .._websockets import handshake as handshakes
            from .._websockets.relay import WebSocketRelay
        except ImportError as exc:
            logger.warning("a WebSocket handshake was refused: %s", exc)
            await websocket.close(1008)
            return
        async with handshakes.close_on_http_exception(websocket):
            client, outgoing = await self._requests.build(websocket, handshakes.build_handshake)
            if isinstance(outgoing, Response):
                await handshakes.send_denial_response(websocket, outgoing)
            else:
                relay = WebSocketRelay(
                    client,
                    websocket,
                    outgoing,
                    observers=self._options.get("observers", ()),
                    max_message_bytes=self._max_message_bytes,
                    ping_interval=self._ping_interval,
                )
                await relay.run()

    async def _rewrite(
        self,
        base: httpx.URL,
        scope: Scope,
        request_headers: httpx.Headers,
        upstream: httpx.Response,
    ) -> Response | None:
        """Call `on_response`, then map the upstream's redirects and cookies under the mount."""
        on_response = self._options.get("on_response")
        answer = None if on_response is None else await maybe_await(on_response(upstream))
        headers, mount = upstream.headers.raw, split_prefix(scope, self._prefix)[0]
        if self._rewrite_redirects:
            # The upstream knows itself by these names. It may build its redirects from them.
            names = (b"host", b"x-forwarded-host")
            hosts = [value for name, value in request_headers.raw if name.lower() in names]
            headers = rewriting.rewrite_locations(headers, base, mount, hosts)
        if self._rewrite_cookies:
            headers = rewriting.rewrite_cookies(headers, base, mount)
        upstream.headers = get_library(type(upstream)).Headers(headers)
        return answer


def _validate_options(
    methods: object,
    body_timeout: float | None,
    max_message_bytes: object,
    ping_interval: object,
    options: SharedOptions[Any],
) -> None:
    if unknown := options.keys() - SharedOptions.__annotations__.keys():
        raise TypeError(
            f"ReverseProxy has no option {sorted(unknown)[0]!r}; the client's options, such "
            f"as base_url=, belong in client_lifespan(...)"
        )
    if isinstance(methods, str):
        raise TypeError(f"methods={methods!r}: give a list of methods")
    validate_seconds("body_timeout", body_timeout)
    validate_size("max_message_bytes", max_message_bytes)
    validate_seconds("ping_interval", ping_interval)
    validate_options(options)


def _add_head(methods: Collection[str]) -> frozenset[str]:
    return frozenset((*methods, "HEAD") if "GET" in methods else methods)


async def _handle_lifespan(receive: Receive, send: Send) -> None:
    while (message := await receive())["type"] != "lifespan.shutdown":
        await send({"type": message["type"] + ".complete"})
    await send({"type": "lifespan.shutdown.complete"})


async def _answer_errors(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Call `app` and answer its errors, because no surrounding Starlette app does."""
    started = False

    async def send_wrapper(message: Message) -> None:
        nonlocal started
        started = True
        await send(message)

    try:
        await app(scope, receive, send_wrapper)
    except HTTPException as exc:
        if started:
            raise
        await PlainTextResponse(exc.detail, exc.status_code, headers=exc.headers)(
            scope, receive, send
        )

"""An ASGI app that forwards each request to an upstream."""

from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from functools import partial
from typing import Any, Unpack, overload

import httpx
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from .._headers import RawHeaders
from .._hooks import maybe_await
from .._httpx.flavors import RequestT, ResponseT, describe_type, get_library
from .._httpx.requests import ForwardedRequest
from .._logging import logger
from .._methods import NEVER_FORWARDED, USUAL
from ..responses import SharedOptions, StreamedResponse, validate_options
from . import rewriting
from .overrides import resolve_client
from .request import (
    BODY_TIMEOUT,
    HeaderOverrides,
    apply_overrides,
    forward_request,
    validate_body_timeout,
)
from .target import PrefixMismatch, split_prefix

OnRequest = Callable[
    [RequestT],
    RequestT | Response | Awaitable[RequestT | Response | None] | None,
]
ClientName = str | Callable[[HTTPConnection], str | Awaitable[str]]

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""Maximum size of a WebSocket message from the upstream."""


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
        methods: Methods to forward. GET includes HEAD. Others are answered 405. Default: all except
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
        ValueError: If an argument has an invalid value. For causes and fixes see
            [docs/errors.md][when-the-app-is-written-or-started].
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
        if unknown := options.keys() - SharedOptions.__annotations__.keys():
            raise TypeError(
                f"ReverseProxy has no option {sorted(unknown)[0]!r}; the client's options, such "
                f"as base_url=, belong in client_lifespan(...)"
            )
        _validate_name(name)
        if isinstance(methods, str):
            raise TypeError(f"methods={methods!r}: give a list of methods")
        validate_body_timeout(body_timeout)
        _validate_websocket_options(max_message_bytes, ping_interval)
        validate_options(options)
        self._name = name
        self._prefix = prefix
        self._methods = None if methods is None else _add_head(methods)
        self._headers = headers
        self._forward_options: dict[str, Any] = {
            "prefix": prefix,
            "trust_forwarded_headers": trust_forwarded_headers,
            "preserve_host": preserve_host,
        }
        self._body_timeout = body_timeout
        self._on_request = on_request
        self._rewrite_redirects = rewrite_redirects
        self._rewrite_cookies = rewrite_cookies
        self._websocket_options: dict[str, Any] = {
            "max_message_bytes": max_message_bytes,
            "ping_interval": ping_interval,
        }
        self._options = options
        self._has_logged_mismatch = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _handle_lifespan(receive, send)
        elif "starlette.exception_handlers" in scope:
            await self._handle(scope, receive, send)
        else:
            await self._handle_standalone(scope, receive, send)

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._relay_websocket(WebSocket(scope, receive, send))
            return
        response = await self.respond(Request(scope, receive, send))
        await response(scope, receive, send)

    async def _handle_standalone(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer errors too, because no surrounding Starlette app does."""
        started = False

        async def send_wrapper(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._handle(scope, receive, send_wrapper)
        except HTTPException as exc:
            if started:
                raise
            await PlainTextResponse(exc.detail, exc.status_code, headers=exc.headers)(
                scope, receive, send
            )

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
        client, outgoing = await self._build_request(request, forward, headers)
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

    async def _build_request(
        self,
        connection: HTTPConnection,
        forward: Callable[..., httpx.Request],
        headers: HeaderOverrides | None = None,
    ) -> tuple[httpx.AsyncClient, httpx.Request | Response]:
        """Return the client, and the request to send or the response for the caller."""
        name = self._name
        if callable(name):
            name = await maybe_await(name(connection))
        client = await resolve_client(connection, name)
        overrides = _combine_overrides(self._headers, headers)
        try:
            outgoing = forward(client, connection, headers=overrides, **self._forward_options)
        except PrefixMismatch as exc:
            self._log_mismatch(exc)
            raise HTTPException(404) from exc
        if self._on_request is None:
            return client, outgoing
        if isinstance(outgoing, ForwardedRequest):
            with suppress(ClientDisconnect):  # The exchange finds it again and ends quietly.
                await outgoing.resolve_body()  # so that the hook sees the headers that are sent
        answer = await maybe_await(self._on_request(outgoing))
        return client, outgoing if answer is None else answer

    def _log_mismatch(self, mismatch: PrefixMismatch) -> None:
        """Log the first path outside the prefix. A wrong prefix is otherwise a silent 404."""
        if not self._has_logged_mismatch:
            self._has_logged_mismatch = True
            logger.warning("ReverseProxy answered 404 (logged once): %s", mismatch)

    async def _relay_websocket(self, websocket: WebSocket) -> None:
        try:
            from .._websockets import handshake as handshakes
            from .._websockets.relay import WebSocketRelay
        except ImportError as exc:
            logger.warning("a WebSocket handshake was refused: %s", exc)
            await websocket.close(1008)
            return
        async with handshakes.close_on_http_exception(websocket):
            client, outgoing = await self._build_request(websocket, handshakes.build_handshake)
            if isinstance(outgoing, Response):
                await handshakes.send_denial_response(websocket, outgoing)
            else:
                relay_options = self._websocket_options
                observers = self._options.get("observers", ())
                relay = WebSocketRelay(
                    client, websocket, outgoing, observers=observers, **relay_options
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
        headers = upstream.headers.raw
        mount = split_prefix(scope, self._prefix)[0]
        if self._rewrite_redirects:
            # The upstream knows itself by these names. It may build its redirects from them.
            names = (b"host", b"x-forwarded-host")
            hosts = [value for name, value in request_headers.raw if name.lower() in names]
            headers = rewriting.rewrite_locations(headers, base, mount, hosts)
        if self._rewrite_cookies:
            headers = rewriting.rewrite_cookies(headers, base, mount)
        upstream.headers = get_library(type(upstream)).Headers(headers)
        return answer


def _combine_overrides(
    first: HeaderOverrides | None, second: HeaderOverrides | None
) -> HeaderOverrides | None:
    if first is None or second is None:
        return second if first is None else first

    def apply_both(raw: RawHeaders) -> RawHeaders:
        return apply_overrides(apply_overrides(raw, first), second)

    return apply_both


def _validate_name(name: object) -> None:
    """Reject a URL, a path or a client in place of a client's name, and say what to do.

    Raises:
        TypeError: If it is a client or anything else that is not a name.
        ValueError: If it is a URL or a path.
    """
    if callable(name):
        return
    if not isinstance(name, str):
        raise TypeError(
            f"ReverseProxy needs the name of a client, not {describe_type(name)}: write "
            f"ReverseProxy() for the client of client_lifespan(), or ReverseProxy('billing') for "
            f"another"
        )
    if "://" in name:
        raise ValueError(
            f"ReverseProxy({name!r}): the first argument is the name of a client. The URL belongs "
            f"to the client: client_lifespan(base_url={name!r})"
        )
    if name.startswith("/"):
        raise ValueError(
            f"ReverseProxy({name!r}): the first argument is the name of a client. The path belongs "
            f"to the mount: app.mount({name!r}, ReverseProxy()), or in prefix={name!r}"
        )


def _validate_websocket_options(max_message_bytes: object, ping_interval: object) -> None:
    if not (isinstance(max_message_bytes, int) and max_message_bytes > 0):
        raise ValueError(f"max_message_bytes={max_message_bytes!r}: give a number of bytes above 0")
    is_seconds = isinstance(ping_interval, int | float) and ping_interval > 0
    if ping_interval is not None and not is_seconds:
        raise ValueError(f"ping_interval={ping_interval!r}: give seconds above 0, or None for none")


def _add_head(methods: Collection[str]) -> frozenset[str]:
    return frozenset((*methods, "HEAD") if "GET" in methods else methods)


async def _handle_lifespan(receive: Receive, send: Send) -> None:
    while (message := await receive())["type"] != "lifespan.shutdown":
        await send({"type": message["type"] + ".complete"})
    await send({"type": "lifespan.shutdown.complete"})

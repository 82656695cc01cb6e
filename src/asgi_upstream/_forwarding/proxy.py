"""An ASGI app that passes each request on to an upstream."""

import inspect
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import Any, Unpack, overload

import httpx
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from .._httpx.flavors import RequestT, ResponseT, describe_type, get_library
from .._logging import logger
from ..dependencies import find_client
from ..responses import SharedOptions, StreamedResponse, validate_options
from . import rewriting
from .request import HeaderOverrides, forward_request
from .target import PrefixMismatch, split_prefix

OnRequest = Callable[
    [RequestT],
    RequestT | Response | Awaitable[RequestT | Response | None] | None,
]
ClientName = str | Callable[[HTTPConnection], str | Awaitable[str]]

_BLOCKED_METHODS = frozenset(("CONNECT", "TRACE"))
_DEFAULT_ALLOW = frozenset(("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"))


class ReverseProxy:
    """An ASGI app that forwards each request to an upstream, to mount or to route to.

        app.mount("/api", ReverseProxy())

    Arguments:
        name: of the client in the lifespan state, or a function of the connection that returns it,
            async or not: one of several upstreams, chosen for each request.
        prefix, headers, trust_forwarded_headers: as of `forward_request`.
        methods: those that are forwarded, and HEAD with GET; others are answered 405. Default: all
            but CONNECT and TRACE, which never are (RFC 9110 9.3.6, 9.3.8).
        on_request: called with the request to the upstream before it is sent, async or not. It may
            change it, or return another to send, or a response to answer with instead.
        rewrite_redirects: map Location, Content-Location, Refresh and Link back under the mount if
            they name the upstream, or the caller's host, which the upstream got in
            X-Forwarded-Host. A path that is already under the mount stays as it is.
        rewrite_cookies: map the Path of the upstream's cookies under the mount too, and drop their
            Domain.
        options: as of `StreamedResponse`.

    A WebSocket is relayed with the extra `ws`, as by `relay_websocket`, by
    the arguments above but `methods` and the two rewrites; of `options` it takes `observers`. Else
    its handshake is refused (403).

    Raises:
        TypeError, ValueError: at once, for arguments that make no sense. Causes and fixes:
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
        on_request: OnRequest[httpx.Request] | None = None,
        rewrite_redirects: bool = False,
        rewrite_cookies: bool = False,
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
        on_request: OnRequest[RequestT] | None = None,
        rewrite_redirects: bool = False,
        rewrite_cookies: bool = False,
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
        on_request: OnRequest[Any] | None = None,
        rewrite_redirects: bool = False,
        rewrite_cookies: bool = False,
        **options: Unpack[SharedOptions[Any]],
    ) -> None:
        if unknown := options.keys() - SharedOptions.__annotations__.keys():
            raise TypeError(
                f"ReverseProxy has no option {sorted(unknown)[0]!r}; what is the client's, such as "
                f"base_url=, is given to client_lifespan(...)"
            )
        _check_name(name)
        if isinstance(methods, str):
            raise TypeError(f"methods={methods!r}: give a list of methods")
        validate_options(options)
        self._name = name
        self._prefix = prefix
        self._methods = None if methods is None else _add_head(methods)
        self._headers = headers
        self._trust_forwarded = trust_forwarded_headers
        self._on_request = on_request
        self._rewrite_redirects = rewrite_redirects
        self._rewrite_cookies = rewrite_cookies
        self._options = options

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _handle_lifespan(receive, send)
        else:
            app = (
                self._handle if "starlette.exception_handlers" in scope else self._handle_standalone
            )
            await app(scope, receive, send)

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._relay_websocket(WebSocket(scope, receive, send))
            return
        response = await self.respond(Request(scope, receive, send))
        await response(scope, receive, send)

    async def _handle_standalone(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer errors too, where no app around this one does."""
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

    async def respond(self, request: Request) -> Response:
        """The response to a request, for an endpoint that does more: dependencies, a choice.

        Raises:
            HTTPException: 400, 404 or 405, for what is not forwarded.
        """
        methods = self._methods
        if request.method in _BLOCKED_METHODS or (
            methods is not None and request.method not in methods
        ):
            allowed = sorted((_DEFAULT_ALLOW if methods is None else methods) - _BLOCKED_METHODS)
            raise HTTPException(405, headers={"allow": ", ".join(allowed)})
        client, outgoing = await self._build_request(request, forward_request)
        if isinstance(outgoing, Response):
            return outgoing
        options = self._options.copy()
        if self._rewrite_redirects or self._rewrite_cookies:
            options["on_response"] = partial(
                self._rewrite, client.base_url, request.scope, outgoing.headers
            )
        return StreamedResponse(client, outgoing, **options)  # pyright: ignore

    async def _build_request(
        self, connection: HTTPConnection, forward: Callable[..., httpx.Request]
    ) -> tuple[httpx.AsyncClient, httpx.Request | Response]:
        """The client, and what to send by it, or what to answer instead."""
        name = self._name(connection) if callable(self._name) else self._name
        client = find_client(connection, await name if inspect.isawaitable(name) else name)
        try:
            outgoing = forward(
                client,
                connection,
                prefix=self._prefix,
                headers=self._headers,
                trust_forwarded_headers=self._trust_forwarded,
            )
        except PrefixMismatch as exc:
            raise HTTPException(404) from exc
        if self._on_request is None:
            return client, outgoing
        answer = self._on_request(outgoing)
        answer = await answer if inspect.isawaitable(answer) else answer
        return client, outgoing if answer is None else answer

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
                observers = self._options.get("observers", ())
                await WebSocketRelay(client, websocket, outgoing, observers=observers).run()

    async def _rewrite(
        self,
        base: httpx.URL,
        scope: Scope,
        request_headers: httpx.Headers,
        upstream: httpx.Response,
    ) -> Response | None:
        """Call `on_response`, then map the upstream's redirects and cookies under the mount."""
        on_response = self._options.get("on_response")
        answer = on_response(upstream) if on_response is not None else None
        answer = await answer if inspect.isawaitable(answer) else answer
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


def _check_name(name: object) -> None:
    """What else is easily given in the place of a client's name is told where it belongs."""
    if callable(name):
        return
    if not isinstance(name, str):
        raise TypeError(
            f"ReverseProxy needs the name of a client, not {describe_type(name)}: write "
            f"ReverseProxy() for "
            f"the one of client_lifespan(), or ReverseProxy('billing') for another"
        )
    if "://" in name:
        raise ValueError(
            f"ReverseProxy({name!r}): the first argument names a client, and the upstream is the "
            f"client's: client_lifespan(base_url={name!r})"
        )
    if name.startswith("/"):
        raise ValueError(
            f"ReverseProxy({name!r}): the first argument names a client, and the path is the "
            f"mount's: app.mount({name!r}, ReverseProxy()), or else ReverseProxy(prefix={name!r})"
        )


def _add_head(methods: Collection[str]) -> frozenset[str]:
    return frozenset((*methods, "HEAD") if "GET" in methods else methods)


async def _handle_lifespan(receive: Receive, send: Send) -> None:
    while (message := await receive())["type"] != "lifespan.shutdown":
        await send({"type": message["type"] + ".complete"})
    await send({"type": "lifespan.shutdown.complete"})

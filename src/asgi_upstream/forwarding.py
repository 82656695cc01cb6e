"""A caller's whole request, passed on to an upstream: as a request, and as an app to mount."""

import inspect
import re
from collections.abc import (
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Mapping,
)
from functools import partial
from typing import Any, Unpack, cast, overload
from urllib.parse import quote, unquote_plus, unquote_to_bytes

import httpx
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from . import headers as fields_of
from .dependencies import client_of
from .forwarded import CallersBody, ForwardedRequest
from .headers import RawHeaders
from .libraries import (
    URLT,
    AnyBuilder,
    Library,
    RequestT,
    ResponseT,
    cached,
    derived,
    library_of,
)  # fmt: skip
from .log import logger
from .paths import after_prefix, escapes, raw_path_of
from .responses import RelayOptions, StreamedResponse
from .rewriting import rewritten_cookies, rewritten_locations

HeaderChange = Mapping[str, str | None] | Callable[[RawHeaders], Iterable[tuple[bytes, bytes]]]
OnRequest = Callable[
    [RequestT],
    RequestT | Response | Awaitable[RequestT | Response | None] | None,
]
ClientName = str | Callable[[HTTPConnection], str | Awaitable[str]]

_BODYLESS = frozenset(("GET", "HEAD", "DELETE", "OPTIONS"))
_NOT_FORWARDED = "The path is not one that is forwarded"
_ILLEGAL = re.compile(rb"[^!-~]")  # in a request line (RFC 9112 3.2), though some servers pass it
_NEVER = frozenset(("CONNECT", "TRACE"))
_USUAL = frozenset(("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"))


def forward_request(
    client: AnyBuilder[RequestT, URLT],
    request: HTTPConnection,
    *,
    prefix: str | None = None,
    url: URLT | str | None = None,
    headers: HeaderChange | None = None,
    trust_forwarded: bool = False,
) -> RequestT:
    """The caller's request as a request to the upstream under the client's `base_url`.

        return StreamedResponse(client, forward_request(client, request, prefix="/api"))

    Method, path after the prefix, query, end-to-end headers (RFC 9110 7.6.1) and body are passed on
    byte for byte; the body while it arrives. What the author put on the client (`headers=`,
    `auth=`, `params=`, `cookies=`) wins over the caller's of that name; what httpx adds by itself
    is not sent. Redirects are relayed, not followed.

    Arguments:
        request: the caller's, from the endpoint.
        prefix: the part of the path that is the app's own, encoded or not. Default: the mount's.
        url: another target: under `base_url` as a str, or anywhere, on purpose, as an absolute
            `httpx.URL`. Without a query of its own it gets the caller's.
        headers: sets fields, or with None removes them; or a function from the raw header list
            that would be sent to the one to send.
        trust_forwarded: believe the caller's X-Forwarded-* and Forwarded, and append to them. Only
            behind a proxy of your own that sets them.

    Raises:
        HTTPException: 400 for a path with a dot segment in any disguise, or a field with a line
            break or NUL in it.
        ValueError: the path does not start with the prefix, or `url` leaves the base. Causes and
            fixes: [docs/errors.md][when-the-app-is-written-or-started].
    """
    its: Any = client
    other: Any = url
    scope, library = request.scope, library_of(type(client))
    target, base = _target(library, its, scope, prefix, other)
    fields = fields_of.forwarded_request_headers(scope, trust_forwarded=trust_forwarded)
    fields = _with_the_clients_own(library, its, fields, base)
    if headers is not None:
        if callable(headers):
            fields = [(name.lower(), value) for name, value in headers(fields)]
        else:
            fields = fields_of.overridden(fields, headers)
        fields_of.check(fields)
    stream: httpx.AsyncByteStream
    names = dict(fields)
    if b"content-length" in names or b"transfer-encoding" in names:
        stream = _body(library)(library, request, fields_of.content_length(fields))
    elif scope["http_version"] in ("2", "3") and scope["method"] not in _BODYLESS:
        fields.append((b"transfer-encoding", b"chunked"))
        stream = _body(library)(library, request, None)
    else:
        stream = _nothing(library)
    kind, timeout = derived(ForwardedRequest, library.Request), its.timeout.as_dict()
    outgoing = kind(library, scope["method"], base, target, fields, stream, timeout)
    return cast(RequestT, outgoing)


@cached
def _nothing(library: Library) -> httpx.ByteStream:
    return library.ByteStream(b"")


def _body(library: Library) -> type[CallersBody]:
    return derived(CallersBody, library.AsyncByteStream)


def _target(
    library: Library,
    client: httpx.AsyncClient,
    scope: Scope,
    prefix: str | None,
    url: httpx.URL | str | None,
) -> tuple[bytes, httpx.URL]:
    base = client.base_url
    base_path = base.raw_path.partition(b"?")[0].rstrip(b"/")
    query: bytes = scope["query_string"]
    if url is None:
        path = _split(scope, prefix)[1]
        if path[:1] not in (b"", b"/") or escapes(path):
            raise HTTPException(400, _NOT_FORWARDED)
        path = base_path + path
    else:
        other = library.URL(url)
        path, _, own_query = other.raw_path.partition(b"?")
        if escapes(path):
            raise ValueError(f"url={url!r} has a dot segment: give the path that you mean")
        if other.scheme or other.host:
            if isinstance(url, str) and not _is_under(other, base, base_path):
                raise ValueError(
                    f"url={url!r} is not under the client's base_url {str(base)!r}: give an "
                    f"{library.__name__}.URL if you mean to leave it, or share another client"
                )
            base = other
        else:
            path = base_path + b"/" + path.lstrip(b"/")
        query = own_query if b"?" in other.raw_path else query
    query = _with_params(query, client.params)
    target = (path or b"/") + (b"?" + query if query else b"")
    if _ILLEGAL.search(target):
        raise HTTPException(400, _NOT_FORWARDED)
    return target, base


def _split(scope: Scope, prefix: str | None) -> tuple[bytes, bytes]:
    """The raw path: the part under which callers reach the upstream, and what is behind it."""
    raw = raw_path_of(scope)
    # With a root_path of the server's, some servers put that before the path and some do not.
    root: str = scope.get("root_path", "")
    servers: str = scope.get("app_root_path", root).rstrip("/")
    own = root.removeprefix(servers).encode() if prefix is None else unquote_to_bytes(prefix)
    if prefix in ("", "/"):
        servers = ""
    before = b""
    rest = after_prefix(raw, servers.encode() + own)
    if rest is None and servers:
        before, rest = quote(servers).encode(), after_prefix(raw, own)
    if rest is not None:
        return before + raw[: len(raw) - len(rest)].rstrip(b"/"), rest
    if not raw.startswith(b"/"):
        raise HTTPException(400, _NOT_FORWARDED)
    raise OutsidePrefix(
        f"the path {raw!r} does not start with the prefix {own.decode(errors='replace')!r}: give "
        f"prefix= as the part of the path that is your app's own"
    )


class OutsidePrefix(ValueError):
    """A path that does not start with the prefix."""


def _is_under(url: httpx.URL, base: httpx.URL, base_path: bytes) -> bool:
    same = (url.scheme, url.host, url.port) == (base.scheme, base.host, base.port)
    return same and after_prefix(url.raw_path.partition(b"?")[0], base_path) is not None


def _with_params(query: bytes, params: httpx.QueryParams) -> bytes:
    """The caller's query less what the author's names, and the author's."""
    if not params:
        return query
    own = str(params).encode()
    if not query:
        return own
    kept = [
        pair
        for pair in query.split(b"&")
        if unquote_plus(pair.partition(b"=")[0].decode("latin-1")) not in params
    ]
    return b"&".join([*kept, own])


def _with_the_clients_own(
    library: Library, client: httpx.AsyncClient, fields: RawHeaders, url: httpx.URL
) -> RawHeaders:
    """What the author put on the client on purpose wins, also over an underscore twin."""
    own, defaults = client.headers.raw, _defaults(library)
    names: set[bytes] = set()
    if own != defaults:
        own = [(name.lower(), value) for name, value in own if (name, value) not in defaults]
        names = {name.replace(b"_", b"-") for name, _ in own}
        fields = [field for field in fields if field[0].replace(b"_", b"-") not in names]
        fields += own
    if b"host" not in names:
        fields.insert(0, (b"host", url.netloc))
    if len(client.cookies.jar):
        probe = library.Request("GET", url)
        client.cookies.set_cookie_header(probe)
        if cookie := probe.headers.get("cookie"):
            fields = fields_of.with_cookies(fields, cookie.encode("latin-1"))
    return fields


@cached
def _defaults(library: Library) -> RawHeaders:
    """The fields that httpx puts on every client by itself."""
    nowhere = library.MockTransport(lambda request: library.Response(200))
    return library.Client(transport=nowhere).headers.raw


class ForwardApp:
    """An ASGI app that forwards each request to an upstream, to mount or to route to.

        app.mount("/api", ForwardApp())

    Arguments:
        name: of the client in the lifespan state, or a function of the connection that returns it,
            async or not: one of several upstreams, chosen for each request.
        prefix, headers, trust_forwarded: as of `forward_request`.
        methods: those that are forwarded, and HEAD with GET; others are answered 405. Default: all
            but CONNECT and TRACE, which never are (RFC 9110 9.3.6, 9.3.8).
        on_request: called with the request to the upstream before it is sent, async or not. It may
            change it, or return another to send, or a response to answer with instead.
        rewrite_redirects: map a Location or Content-Location that names the upstream's own address
            back under the mount.
        rewrite_cookies: map the Path of the upstream's cookies under the mount too, and drop their
            Domain.
        options: as of `StreamedResponse`.

    A WebSocket is relayed where httpx-ws is installed (the extra `ws`), as by `relay_websocket`, by
    the arguments above but `methods` and the two rewrites; of `options` it takes `observers`. Else
    its handshake is refused (403).
    """

    @overload
    def __init__(
        self,
        name: ClientName = "client",
        *,
        prefix: str | None = None,
        methods: Collection[str] | None = None,
        headers: HeaderChange | None = None,
        trust_forwarded: bool = False,
        on_request: OnRequest[httpx.Request] | None = None,
        rewrite_redirects: bool = False,
        rewrite_cookies: bool = False,
        **options: Unpack[RelayOptions[httpx.Response]],
    ) -> None: ...
    @overload
    def __init__(
        self,
        name: ClientName = "client",
        *,
        prefix: str | None = None,
        methods: Collection[str] | None = None,
        headers: HeaderChange | None = None,
        trust_forwarded: bool = False,
        on_request: OnRequest[RequestT] | None = None,
        rewrite_redirects: bool = False,
        rewrite_cookies: bool = False,
        **options: Unpack[RelayOptions[ResponseT]],
    ) -> None: ...
    def __init__(
        self,
        name: ClientName = "client",
        *,
        prefix: str | None = None,
        methods: Collection[str] | None = None,
        headers: HeaderChange | None = None,
        trust_forwarded: bool = False,
        on_request: OnRequest[Any] | None = None,
        rewrite_redirects: bool = False,
        rewrite_cookies: bool = False,
        **options: Unpack[RelayOptions[Any]],
    ) -> None:
        if unknown := options.keys() - RelayOptions.__annotations__.keys():
            raise TypeError(f"ForwardApp has no option {sorted(unknown)[0]!r}")
        if isinstance(name, str) and name.startswith("/"):
            raise ValueError(
                f"ForwardApp({name!r}): the first argument names a client, and the path is the "
                f"mount's: app.mount({name!r}, ForwardApp()), or else ForwardApp(prefix={name!r})"
            )
        if isinstance(methods, str):
            raise TypeError(f"methods={methods!r}: give a list of methods")
        self._name = name
        self._prefix = prefix
        self._methods = None if methods is None else _with_head(methods)
        self._headers = headers
        self._trust_forwarded = trust_forwarded
        self._on_request = on_request
        self._rewrites = [
            rewrite
            for rewrite, wanted in (
                (rewritten_locations, rewrite_redirects),
                (rewritten_cookies, rewrite_cookies),
            )
            if wanted
        ]
        self._options = options

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _no_lifespan(receive, send)
        else:
            app = self._answer if "starlette.exception_handlers" in scope else self._answer_alone
            await app(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._relay_websocket(WebSocket(scope, receive, send))
            return
        response = await self.respond(Request(scope, receive, send))
        await response(scope, receive, send)

    async def _answer_alone(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer errors too, where no app around this one does."""
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._answer(scope, receive, sending)
        except HTTPException as exc:
            if started:
                raise
            await PlainTextResponse(exc.detail, exc.status_code, headers=exc.headers)(
                scope, receive, send
            )

    async def respond(self, request: Request) -> Response:
        """The response to a request, for an endpoint that does more: dependencies, a choice.

        Raises:
            HTTPException: 400 or 405, for what is never forwarded.
        """
        only = self._methods
        if request.method in _NEVER or (only is not None and request.method not in only):
            allowed = sorted((_USUAL if only is None else only) - _NEVER)
            raise HTTPException(405, headers={"allow": ", ".join(allowed)})
        client, outgoing = await self._outgoing(request, forward_request)
        if isinstance(outgoing, Response):
            return outgoing
        options = self._options.copy()
        if self._rewrites:
            options["on_response"] = partial(self._rewrite, client.base_url, request.scope)
        return StreamedResponse(client, outgoing, **options)  # pyright: ignore

    async def _outgoing(
        self, connection: HTTPConnection, forward: Callable[..., httpx.Request]
    ) -> tuple[httpx.AsyncClient, httpx.Request | Response]:
        """The client, and what to send by it, or what to answer instead."""
        name = self._name(connection) if callable(self._name) else self._name
        client = client_of(connection, await name if inspect.isawaitable(name) else name)
        try:
            outgoing = forward(
                client,
                connection,
                prefix=self._prefix,
                headers=self._headers,
                trust_forwarded=self._trust_forwarded,
            )
        except OutsidePrefix as exc:
            raise HTTPException(404) from exc
        if self._on_request is None:
            return client, outgoing
        answer = self._on_request(outgoing)
        answer = await answer if inspect.isawaitable(answer) else answer
        return client, outgoing if answer is None else answer

    async def _relay_websocket(self, websocket: WebSocket) -> None:
        try:
            from . import handshakes
            from .websockets import Relay
        except ImportError as exc:
            logger.warning("a WebSocket handshake was refused: %s", exc)
            await websocket.close(1008)
            return
        async with handshakes.refusals(websocket):
            client, outgoing = await self._outgoing(websocket, handshakes.handshake)
            if isinstance(outgoing, Response):
                await handshakes.deny(websocket, outgoing)
            else:
                observers = self._options.get("observers", ())
                await Relay(client, websocket, outgoing, observers=observers).run()

    async def _rewrite(
        self, base: httpx.URL, scope: Scope, upstream: httpx.Response
    ) -> Response | None:
        on_response = self._options.get("on_response")
        answer = on_response(upstream) if on_response is not None else None
        answer = await answer if inspect.isawaitable(answer) else answer
        fields = upstream.headers.raw
        mount = _split(scope, self._prefix)[0]
        for rewrite in self._rewrites:
            fields = rewrite(fields, base, mount)
        upstream.headers = library_of(type(upstream)).Headers(fields)
        return answer


def _with_head(methods: Collection[str]) -> frozenset[str]:
    return frozenset((*methods, "HEAD") if "GET" in methods else methods)


async def _no_lifespan(receive: Receive, send: Send) -> None:
    while (message := await receive())["type"] != "lifespan.shutdown":
        await send({"type": message["type"] + ".complete"})
    await send({"type": "lifespan.shutdown.complete"})

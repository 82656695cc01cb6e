"""Relayed WebSockets whose upstream is behind an HTTP proxy, on the client's default transport."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, Self

import httpx
import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import HTTPConnection
from starlette.routing import Mount
from starlette.testclient import TestClient, WebSocketDenialResponse
from websockets.asyncio.server import ServerConnection, serve

from asgi_upstream import ReverseProxy, client_lifespan
from asgi_upstream._httpx.http2 import _WatchedConnection
from asgi_upstream._httpx.proxy_tunnels import prepare_handshake
from asgi_upstream._websockets.handshake import build_handshake
from tests.support.raw_upstream import RawUpstream
from tests.support.scripted_websocket import SCOPE
from tests.support.tls import TLSContexts, make_tls_contexts
from tests.support.tunnel_proxy import TunnelProxy

HOST = "upstream.example"
TARGET = "/x;y?q=[1]"  # httpx would send %5B1%5D
NO_SERVER = "http://127.0.0.1:1"
VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
both_libraries = pytest.mark.parametrize("library", [httpx, httpx2])
every_scheme = pytest.mark.parametrize("scheme", ["http", "https", "ws", "wss"])


@pytest.fixture(scope="module")
def tls() -> TLSContexts:
    return make_tls_contexts(HOST, "127.0.0.1")


@pytest.fixture(autouse=True)
def clear_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


class EchoUpstream:
    """A WebSocket server on loopback that answers each message in upper case."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.handshakes: list[Any] = []

    async def __aenter__(self) -> Self:
        self._server = await serve(self._echo, "127.0.0.1", 0, ssl=self._tls)
        self.port = next(iter(self._server.sockets)).getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    @property
    def targets(self) -> list[str]:
        return [handshake.path for handshake in self.handshakes]

    async def _echo(self, connection: ServerConnection) -> None:
        self.handshakes.append(connection.request)
        async for message in connection:
            assert isinstance(message, str)
            await connection.send(message.upper())


def start_app(
    upstream: EchoUpstream | RawUpstream,
    proxy: TunnelProxy,
    make_options: Callable[[str], Mapping[str, Any]],
    *,
    library: Any = httpx,
    scheme: str = "http",
    host: str = HOST,
) -> TestClient:
    """Return a caller of an app, in whose lifespan the upstream and the proxy run.

    Arguments:
        make_options: Returns the client's options for the proxy's URL.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[Mapping[str, object]]:
        async with upstream, proxy:
            proxy.upstream_port = upstream.port
            base_url = f"{scheme}://{host}:{upstream.port}"
            options = {"timeout": 30, **make_options(proxy.url)}
            lifespan = client_lifespan(library.AsyncClient, base_url=base_url, **options)
            async with lifespan(app) as state:
                yield state

    return TestClient(Starlette(routes=[Mount("/api", ReverseProxy())], lifespan=lifespan))


def echo(caller: TestClient, message: str = "hello") -> str:
    with caller.websocket_connect("/api" + TARGET) as websocket:
        websocket.send_text(message)
        return websocket.receive_text()


def refuse(caller: TestClient) -> int:
    """Return the status of the response that refuses the handshake."""
    with pytest.raises(WebSocketDenialResponse) as denied:
        caller.websocket_connect("/api" + TARGET).__enter__()
    return denied.value.status_code


@both_libraries
@every_scheme
@pytest.mark.parametrize(
    "how", ["proxy=", "mounts=", "transport=", "ALL_PROXY", "HTTP_PROXY or HTTPS_PROXY"]
)
def test_websocket_passes_an_http_proxy_in_a_tunnel(
    how: str,
    scheme: str,
    library: Any,
    tls: TLSContexts,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two of them in turn take the only place of the pool."""
    is_secure = scheme in ("https", "wss")
    variable = "ALL_PROXY" if how == "ALL_PROXY" else f"HTTP{'S' * is_secure}_PROXY"

    def make_options(proxy: str) -> Mapping[str, Any]:
        options = {"limits": library.Limits(max_connections=1), "verify": tls.trust}
        if how == "proxy=":
            return {**options, "proxy": proxy}
        if how in ("mounts=", "transport="):
            transport = library.AsyncHTTPTransport(proxy=proxy, **options)
            return (
                {"transport": transport}
                if how == "transport="
                else {"mounts": {"all://": transport}}
            )
        monkeypatch.setenv(variable, proxy)
        return options

    upstream, proxy = EchoUpstream(tls.server if is_secure else None), TunnelProxy()
    with start_app(upstream, proxy, make_options, library=library, scheme=scheme) as caller:
        assert [echo(caller), echo(caller)] == ["HELLO", "HELLO"]
    assert proxy.request_lines == [f"CONNECT {HOST}:{upstream.port} HTTP/1.1".encode()] * 2
    assert upstream.targets == [TARGET, TARGET]


@both_libraries
@every_scheme
@pytest.mark.parametrize("excluded_by", ["NO_PROXY", "scheme"])
def test_websocket_that_needs_no_proxy_goes_direct(
    excluded_by: str,
    scheme: str,
    library: Any,
    tls: TLSContexts,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    is_secure = scheme in ("https", "wss")

    def make_options(proxy: str) -> Mapping[str, Any]:
        if excluded_by == "NO_PROXY":
            monkeypatch.setenv("ALL_PROXY", proxy)
            monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        else:
            monkeypatch.setenv(f"HTTP{'S' * (not is_secure)}_PROXY", proxy)
        return {"verify": tls.trust}

    upstream, proxy = EchoUpstream(tls.server if is_secure else None), TunnelProxy()
    with start_app(
        upstream, proxy, make_options, library=library, scheme=scheme, host="127.0.0.1"
    ) as caller:
        assert echo(caller) == "HELLO"
    assert proxy.requests == []


@both_libraries
def test_mount_for_ws_wins_over_the_proxy_for_http(
    library: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_options(proxy: str) -> Mapping[str, Any]:
        monkeypatch.setenv("HTTP_PROXY", NO_SERVER)
        return {"mounts": {"ws://": library.AsyncHTTPTransport(proxy=proxy)}}

    upstream, proxy = EchoUpstream(), TunnelProxy()
    with start_app(upstream, proxy, make_options, library=library, scheme="ws") as caller:
        assert echo(caller) == "HELLO"
    assert len(proxy.requests) == 1
    assert upstream.targets == [TARGET]


@both_libraries
def test_proxy_credentials_are_sent_to_the_proxy_only(library: Any) -> None:
    def make_options(proxy: str) -> Mapping[str, Any]:
        return {"proxy": proxy.replace("://", "://user:pw@")}

    upstream, proxy = EchoUpstream(), TunnelProxy()
    with start_app(upstream, proxy, make_options, library=library) as caller:
        assert echo(caller) == "HELLO"
    (connect,) = proxy.requests
    assert b"proxy-authorization: basic dxnlcjpwdw==" in connect.lower()
    assert b"upgrade" not in connect.lower()
    (handshake,) = upstream.handshakes
    assert "proxy-authorization" not in handshake.headers


@both_libraries
def test_tunnel_may_lead_through_a_proxy_with_tls(library: Any, tls: TLSContexts) -> None:
    def make_options(proxy: str) -> Mapping[str, Any]:
        return {"proxy": library.Proxy(proxy, ssl_context=tls.trust)}

    upstream, proxy = EchoUpstream(), TunnelProxy(tls=tls.server)
    with start_app(upstream, proxy, make_options, library=library) as caller:
        assert echo(caller) == "HELLO"
    assert len(proxy.requests) == 1


@both_libraries
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_tunnel_that_the_proxy_refuses_is_502(
    scheme: str, library: Any, caplog: pytest.LogCaptureFixture
) -> None:
    proxy = TunnelProxy(answer=b"HTTP/1.1 407 Who\r\ncontent-length: 0\r\n\r\n")
    with start_app(
        EchoUpstream(), proxy, lambda url: {"proxy": url}, library=library, scheme=scheme
    ) as caller:
        assert refuse(caller) == 502
    (message,) = [r.getMessage() for r in caplog.records if r.name == "asgi_upstream"]
    assert "ProxyError: 407 Who" in message


@both_libraries
def test_tunnel_of_a_refused_handshake_is_used_again(
    library: Any, caplog: pytest.LogCaptureFixture
) -> None:
    upstream, proxy = RawUpstream(), TunnelProxy()  # which knows no WebSockets
    with start_app(upstream, proxy, lambda url: {"proxy": url}, library=library) as caller:
        assert [refuse(caller), refuse(caller)] == [200, 200]
    assert len(proxy.requests) == 1
    assert len(upstream.requests) == 2
    assert not [record for record in caplog.records if record.name == "asgi_upstream"]


@both_libraries
def test_request_beside_a_websocket_is_forwarded_by_the_proxy(library: Any) -> None:
    """The tunnel is for the handshake. Other requests have the whole URL in their request line."""
    upstream, proxy = EchoUpstream(), TunnelProxy()
    with start_app(upstream, proxy, lambda url: {"proxy": url}, library=library) as caller:
        assert echo(caller) == "HELLO"
        assert caller.get("/api/a").status_code == 405
    assert proxy.request_lines[1] == f"GET http://{HOST}:{upstream.port}/a HTTP/1.1".encode()


@both_libraries
@every_scheme
@pytest.mark.parametrize("how", ["direct", "proxy=", "environment"])
@pytest.mark.anyio
async def test_handshake_keeps_a_target_that_httpx_encodes(
    how: str, scheme: str, library: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    scope = SCOPE | {"raw_path": b'/"x"', "query_string": b"q=|"}
    options = {"proxy": NO_SERVER} if how == "proxy=" else {}
    if how == "environment":
        monkeypatch.setenv("HTTP_PROXY", NO_SERVER)
        monkeypatch.setenv("HTTPS_PROXY", NO_SERVER)
    async with library.AsyncClient(base_url=f"{scheme}://{HOST}", **options) as client:
        request = build_handshake(client, HTTPConnection(scope))
        prepare_handshake(client, request)
    assert request.extensions.get("target", request.url.raw_path) == b'/"x"?q=|'
    if how == "direct":
        assert request.url.scheme == scheme


@both_libraries
def test_tunnel_to_an_https_upstream_keeps_its_tls(library: Any, tls: TLSContexts) -> None:
    """The same pool has been prepared for tunnels without TLS."""

    async def fetch() -> int:
        async with RawUpstream(tls=tls.server) as upstream, TunnelProxy() as proxy:
            proxy.upstream_port = upstream.port
            async with library.AsyncClient(proxy=proxy.url, verify=tls.trust) as client:
                prepare_handshake(client, client.build_request("GET", f"http://{HOST}/"))
                return int((await client.get(f"https://{HOST}/")).status_code)

    assert asyncio.run(fetch()) == 200


@both_libraries
@pytest.mark.parametrize("is_first", ["websocket", "request"])
def test_pool_with_http2_opens_tunnels_and_watches_connections(is_first: str, library: Any) -> None:
    """Each of the two changes what the pool creates."""
    upstream, proxy = EchoUpstream(), TunnelProxy()
    created: list[Any] = []

    def make_options(url: str) -> Mapping[str, Any]:
        transport = library.AsyncHTTPTransport(proxy=url, http2=True)
        pool = transport._pool
        create = pool.create_connection

        def create_connection(origin: Any) -> Any:
            created.append(create(origin))
            return created[-1]

        pool.create_connection = create_connection
        return {"transport": transport}

    with start_app(upstream, proxy, make_options, library=library) as caller:
        if is_first == "request":
            assert caller.get("/api/a").status_code == 405
        assert echo(caller) == "HELLO"
        assert caller.get("/api/a").status_code == 405
    assert proxy.request_lines.count(f"CONNECT {HOST}:{upstream.port} HTTP/1.1".encode()) == 1
    assert isinstance(created[-1], _WatchedConnection)


class SocksClient:
    """What is needed of a client whose transport connects to a SOCKS proxy."""

    def __init__(self, *schemes: str) -> None:
        class AsyncSOCKSProxy:
            pass

        self._transport = SimpleNamespace(_pool=object())
        self._proxied = SimpleNamespace(_pool=AsyncSOCKSProxy())
        self._schemes = schemes

    def _transport_for_url(self, url: Any) -> Any:
        return self._proxied if url.scheme in self._schemes else self._transport


@both_libraries
@pytest.mark.parametrize(
    ("scheme", "proxied", "expected"),
    [
        ("ws", ("ws", "wss"), b"ws"),
        ("wss", ("ws", "wss"), b"https"),  # httpcore starts TLS for nothing else
        ("ws", ("http", "https"), b"http"),
        ("wss", ("http", "https"), b"https"),
        ("ws", (), b"ws"),
        ("wss", (), b"wss"),
    ],
)
def test_handshake_through_a_socks_proxy_keeps_its_tls(
    scheme: str, proxied: tuple[str, ...], expected: bytes, library: Any
) -> None:
    request = library.Request("GET", f"{scheme}://{HOST}/a?b")
    prepare_handshake(SocksClient(*proxied), request)
    assert (request.url.raw_scheme, request.url.raw_path) == (expected, b"/a?b")

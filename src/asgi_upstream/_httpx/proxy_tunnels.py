# pyright: reportPrivateUsage=false
"""Sends WebSocket handshakes through proxies.

Most HTTP proxies remove the Upgrade header from the requests that they forward. A WebSocket client
therefore asks the proxy for a tunnel, even if the upstream does not use TLS (RFC 6455 4.1).
httpcore 1.0.9 starts TLS in every tunnel. Behind a SOCKS proxy, it starts none for `wss`. When it
does what the scheme says, delete everything here except `_use_http_scheme`.
"""

from typing import Any

import httpx

from .proxy_targets import (
    SOCKS_PROXY,
    ExactURL,
    find_proxy_pool,
    prepare_target,
    set_exact_url,
)
from .workarounds import change_new_connections

_HTTP_SCHEMES = {"ws": "http", "wss": "https"}


class _TunnelURL(ExactURL):
    """A URL with the scheme `http` for httpx, which chooses the proxy, and `ws` for httpcore."""

    raw_scheme: bytes = b"ws"


class _TLSURL(ExactURL):
    """A URL with the scheme `wss` for httpx, which chooses the proxy, and `https` for httpcore."""

    raw_scheme: bytes = b"https"


def prepare_handshake(client: Any, request: httpx.Request) -> None:
    """Prepare a WebSocket handshake for a proxy, if it goes through one."""
    _use_http_scheme(client, request)
    if request.url.scheme == "wss" and find_proxy_pool(client, request.url, SOCKS_PROXY):
        set_exact_url(request, _TLSURL)
        return
    pool = find_proxy_pool(client, request.url)
    if pool is None or request.url.scheme not in ("http", "ws"):
        prepare_target(client, request)
        return
    change_new_connections(pool, _start_no_tls)
    set_exact_url(request, _TunnelURL)


def _use_http_scheme(client: Any, request: httpx.Request) -> None:
    """Replace `ws` or `wss` if only the mount for `http` or `https` has a proxy.

    That is so for `HTTP_PROXY` and `HTTPS_PROXY`, which httpx mounts for these two schemes.
    """
    scheme = _HTTP_SCHEMES.get(request.url.scheme)
    if scheme is None:
        return
    http_url = request.url.copy_with(scheme=scheme)
    try:
        is_mounted = client._transport_for_url(request.url) is not client._transport
    except AttributeError:  # another client
        return
    has_proxy = find_proxy_pool(client, http_url) or find_proxy_pool(client, http_url, SOCKS_PROXY)
    if has_proxy and not is_mounted:
        target = request.extensions.get("target")
        request.url = http_url
        if target is not None:  # A forwarded request drops it if its URL changes.
            request.extensions["target"] = target


def _start_no_tls(connection: Any, origin: Any) -> None:
    """Make a connection open its tunnel without TLS if the scheme of the upstream is `ws`."""
    if origin.scheme == b"ws":
        connection._connection = _ProxyConnection(connection._connection)


class _ProxyConnection:
    """The connection to the proxy, on which no TLS to the upstream is started."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    async def handle_async_request(self, request: Any) -> Any:
        response = await self._connection.handle_async_request(request)
        if "network_stream" in response.extensions:
            stream = _TunnelStream(response.extensions["network_stream"])
            response.extensions["network_stream"] = stream
        return response


class _TunnelStream:
    """The stream of a new tunnel. The only thing that httpcore does with it is to start TLS."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def start_tls(self, **_options: object) -> Any:
        return self._stream

"""Opens connections to upstreams: TCP or a Unix socket, TLS, retries."""

import asyncio
import socket
import ssl
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from typing import Any

from .._httpx.default_transport import keepalive_socket_options
from .._httpx.interfaces import HTTPXModule
from ._connect import SocketOption, connect_tcp
from ._connection import ConnectionOwner, HTTP11Connection
from ._pool_state import Origin
from ._tracing import ConnectedStream, trace_connect

Protocol = Callable[[], HTTP11Connection]


class Connector:
    """Opens connections, with the same options as httpx's transport.

    Arguments:
        library: httpx or httpx2, whose exceptions are raised.
        uds: The path of a Unix socket, which replaces host and port.
        retries: How often a failed connect is repeated.
        socket_options: Options to set on each socket, beside TCP keepalive.
    """

    def __init__(
        self,
        library: HTTPXModule,
        tls: ssl.SSLContext,
        uds: str | None,
        local_address: str | None,
        retries: int,
        socket_options: Iterable[SocketOption],
    ) -> None:
        self._library = library
        self._tls = tls
        self._uds = uds
        self._local_address = local_address
        self._retries = retries
        self._socket_options = list(socket_options)
        self._tcp_options = [*keepalive_socket_options(), *self._socket_options]

    async def connect(
        self, origin: Origin, owner: ConnectionOwner, timeout: float | None
    ) -> HTTP11Connection:
        """Return a new connection. Each attempt may take `timeout` seconds.

        Raises:
            httpx.ConnectError: If the last attempt failed.
            httpx.ConnectTimeout: If the last attempt took too long.
        """
        for attempt in range(self._retries):
            try:
                return await self._connect_once(origin, owner, timeout)
            except (self._library.ConnectError, self._library.ConnectTimeout):
                await asyncio.sleep(attempt and 0.5 * 2 ** (attempt - 1))
        return await self._connect_once(origin, owner, timeout)

    async def _connect_once(
        self, origin: Origin, owner: ConnectionOwner, timeout: float | None
    ) -> HTTP11Connection:
        try:
            async with asyncio.timeout(timeout):
                return await self.open(origin, owner)
        except TimeoutError as exc:
            raise self._library.ConnectTimeout(str(exc)) from exc
        except (OSError, UnicodeError) as exc:
            raise self._library.ConnectError(str(exc)) from exc

    async def open(self, origin: Origin, owner: ConnectionOwner) -> HTTP11Connection:
        """Open a connection. Tests replace this method.

        Raises:
            OSError: If that failed.
            UnicodeError: If the host is not a name that can be looked up.
        """
        scheme, raw_host, port, sni = origin
        loop = asyncio.get_running_loop()
        host = raw_host.decode("ascii")
        tls: dict[str, Any] = {}
        if scheme in (b"https", b"wss"):
            tls = {"ssl": self._tls, "server_hostname": sni or host}

        def protocol() -> HTTP11Connection:
            return HTTP11Connection(owner, loop, self._library)

        if self._uds is None:
            return await self._open_tcp(host, port, protocol, tls)
        return await self._open_unix(self._uds, protocol, tls)

    async def _open_tcp(
        self, host: str, port: int, protocol: Protocol, tls: dict[str, Any]
    ) -> HTTP11Connection:
        loop = asyncio.get_running_loop()
        address = {"host": host, "port": port, "local_address": self._local_address}
        with ExitStack() as on_failure:  # A trace function may fail or be cancelled.
            async with trace_connect("connect_tcp", **address) as result:
                sock = await connect_tcp(host, port, self._local_address, self._tcp_options)
                on_failure.callback(sock.close)
                result["return_value"] = ConnectedStream(partial(_get_socket_info, sock))
            if not tls:
                on_failure.pop_all()
                _, connection = await loop.create_connection(protocol, sock=sock)
                return connection
            names = {"ssl_context": self._tls, "server_hostname": tls["server_hostname"]}
            async with trace_connect("start_tls", **names) as result:
                on_failure.pop_all()
                _, connection = await loop.create_connection(protocol, sock=sock, **tls)
                on_failure.callback(connection.close)
                result["return_value"] = ConnectedStream(connection.get_extra_info)
            on_failure.pop_all()
            return connection

    async def _open_unix(
        self, path: str, protocol: Protocol, tls: dict[str, Any]
    ) -> HTTP11Connection:
        loop = asyncio.get_running_loop()
        with ExitStack() as on_failure:  # The pool does not know of the connection yet.
            async with trace_connect("connect_unix_socket", path=path) as result:
                transport, connection = await loop.create_unix_connection(protocol, path, **tls)
                on_failure.callback(connection.close)
                result["return_value"] = ConnectedStream(connection.get_extra_info)
            for option in self._socket_options:
                transport.get_extra_info("socket").setsockopt(*option)
            on_failure.pop_all()
            return connection


def _get_socket_info(sock: socket.socket, name: str) -> Any:
    if name == "peername":
        return sock.getpeername()
    return sock.getsockname() if name == "sockname" else sock if name == "socket" else None

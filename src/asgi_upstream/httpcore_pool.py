"""What httpcore's pool has no public way to, and an exchange needs.

The one place that reads private attributes of httpx and httpcore. Where they are not as it knows
them it does nothing, and a test fails.
"""

import socket
import sys
from typing import Any

import anyio


async def reclaim_stranded(client: Any, url: object) -> None:
    """Close stranded connections, and give their places to the requests that wait for them.

    A mend for httpcore 1.0.9: a request that is cancelled, or times out, in the moment in which the
    pool gives it a new connection leaves that there for good, never used, never removed. When
    callers leave a full pool it may lose all its places so.
    https://github.com/encode/httpcore/issues/1093; httpx2 has it mended.
    """
    try:
        pool: Any = client._transport_for_url(url)._pool
        used = {id(request.connection) for request in pool._requests}
        stranded: list[Any] = [
            connection
            for connection in pool._connections
            if id(connection) not in used and not (connection.is_idle() or connection.is_closed())
        ]
        for connection in stranded:
            pool._connections.remove(connection)
        closing = [*stranded, *pool._assign_requests_to_connections()] if stranded else []
    except AttributeError:  # another transport, or another version
        return
    with anyio.CancelScope(shield=True):
        for connection in closing:
            await connection.aclose()


class EarlyAnswer:
    """Whether the upstream has refused a request whose body is still going up.

    httpcore reads nothing before all of the body is sent, unless the connection does not take it.
    """

    def __init__(self, client: Any, url: object, stream: object) -> None:
        self._socket: Any = None
        self.stops_sending: type[Exception] = OSError
        try:
            pool: Any = client._transport_for_url(url)._pool
            httpcore = sys.modules[type(pool).__module__.partition(".")[0]]
            requests = (r for r in pool._requests if r.request.stream is stream)
            connection: Any = next(requests).connection
            while hasattr(connection, "_connection"):
                connection = connection._connection
            self._socket = connection._network_stream.get_extra_info("socket")
            self.stops_sending = httpcore.WriteError
        except (AttributeError, StopIteration):  # another transport, another version, or HTTP/2
            return

    def has_come(self) -> bool:
        """True where a status of 300 or more waits to be read; never with TLS."""
        if self._socket is None or self._socket.fileno() < 0:  # closed
            return False
        with socket.socket(fileno=self._socket.fileno()) as sock:
            try:
                start = sock.recv(10, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            except OSError:
                return False
            finally:
                sock.detach()
        return start[:7] == b"HTTP/1." and start[9:] >= b"3"

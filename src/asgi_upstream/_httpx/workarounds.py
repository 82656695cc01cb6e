"""What httpcore's pool has no public way to, and an exchange needs.

The one place that reads private attributes of httpcore. Where they are not as it knows them it does
nothing, and a test fails.
"""

import socket
import sys
from typing import Any

import anyio

from .._logging import logger

_CANCEL = 8  # the error code of a stream that is not wanted any more (RFC 9113 7)


def _find_pool(client: Any, url: object) -> Any:
    """The pool that serves a URL, also where its transport is wrapped: for retries, for a cache."""
    transport = client._transport_for_url(url)
    while not hasattr(transport, "_pool"):
        attributes = getattr(transport, "__dict__", {}).values()
        inner = [one for one in attributes if hasattr(one, "handle_async_request")]
        if not inner:
            raise AttributeError  # a transport with no pool
        transport = inner[0]
    return transport._pool


async def clean_up_pool(client: Any, url: object) -> None:
    """What httpcore leaves undone when an exchange ends before its own end."""
    await close_stranded_connections(client, url)
    await reset_abandoned_streams(client, url)


async def close_stranded_connections(client: Any, url: object) -> None:
    """Close stranded connections, and give their places to the requests that wait for them.

    A mend for httpcore 1.0.9: a request that is cancelled, or times out, in the moment in which the
    pool gives it a new connection leaves that there for good, never used, never removed. When
    callers leave a full pool it may lose all its places so.
    https://github.com/encode/httpcore/issues/1093; httpx2 has it mended.
    """
    try:
        pool: Any = _find_pool(client, url)
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


def discard_trailing_data(upstream: Any) -> None:
    """Make sure that bytes behind a body are not taken for the next response (RFC 9112 6.3).

    httpcore 1.0.9 keeps such a connection, and its next exchange begins with what h11 has left.
    """
    stream = upstream.stream
    while (
        inner := getattr(stream, "_stream", getattr(stream, "_httpcore_stream", None))
    ) is not None:
        stream = inner
    state = getattr(getattr(stream, "_connection", None), "_h11_state", None)
    if state is not None and state.trailing_data[0]:
        state.send_failed()  # to h11 the connection is in error, so httpcore closes it


async def reset_abandoned_streams(client: Any, url: object) -> None:
    """Reset the HTTP/2 streams that httpcore has left without a word (RFC 9113 5.4.2).

    It forgets a stream whose response is closed before its end: the upstream goes on to produce it,
    and what came unread is never acknowledged, so that in the end the whole connection stalls.
    """
    try:
        pool: Any = _find_pool(client, url)
        for connection in [c._connection for c in pool._connections]:
            if connection is not None and hasattr(connection, "_h2_state"):
                await _reset_orphans_of(connection)
    except Exception:  # another transport, another version, or a connection that is gone
        logger.debug("streams could not be reset", exc_info=True)


async def _reset_orphans_of(connection: Any) -> None:
    state = connection._h2_state
    for number, stream in list(state.streams.items()):
        if number in connection._events or stream.closed:
            continue
        window = stream._inbound_window_manager
        unread = window.max_window_size - window.current_window_size - window._bytes_processed
        if unread > 0:
            state.acknowledge_received_data(unread, number)
        state.reset_stream(number, _CANCEL)
    with anyio.move_on_after(5, shield=True):
        async with connection._write_lock:
            if data := state.data_to_send():
                await connection._network_stream.write(data)


class EarlyResponseDetector:
    """Whether the upstream has refused a request whose body is still going up.

    httpcore reads nothing before all of the body is sent, unless the connection does not take it.
    """

    def __init__(self, client: Any, url: object, stream: object) -> None:
        self._socket: Any = None
        self.write_error: type[Exception] = OSError
        try:
            pool: Any = _find_pool(client, url)
            httpcore = sys.modules[type(pool).__module__.partition(".")[0]]
            requests = (r for r in pool._requests if r.request.stream is stream)
            connection: Any = next(requests).connection
            while hasattr(connection, "_connection"):
                connection = connection._connection
            self._socket = connection._network_stream.get_extra_info("socket")
            self.write_error = httpcore.WriteError
        except (AttributeError, StopIteration):  # another transport, another version, or HTTP/2
            return
        except (OSError, ValueError):  # anyio asks the socket for its names, and it is gone
            return

    def available(self) -> bool:
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

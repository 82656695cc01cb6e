"""Workarounds for faults of httpcore 1.0.9 that only its private attributes can fix.

If a version of httpcore has other attributes, these functions do nothing, a WARNING is logged once
and a test fails.
"""

import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from traceback import walk_tb
from typing import Any

import anyio
import anyio.lowlevel

from .._logging import logger

MAX_CLOSING_TURNS = 50
"""Turns of the event loop in which another task may finish closing a response."""

CLEAN_UP_TIMEOUT = 5.0
"""Seconds that the clean-up of a pool may take."""

PING_TIMEOUT = 4.0
"""Seconds that an HTTP/2 upstream may take to acknowledge a reset stream."""

_STREAM_VARIABLES = {"_connect": "stream", "start_tls": "self"}
"""Functions of httpcore that connect, and their variables with the socket's stream."""

_HANDSHAKES = frozenset(("wrap", "do_handshake"))  # of anyio and of trio
_POOL_IS_LOST = "cancelled requests may use up the pool"
_CANCEL = 8  # the error code for a stream that is no longer needed (RFC 9113 7)


def is_of_httpcore(instance: object) -> bool:
    return type(instance).__module__.partition(".")[0] in ("httpcore", "httpcore2")


@cache
def warn_of_unknown_httpcore(consequence: str) -> None:
    """Log once that a workaround does nothing, because httpcore has changed."""
    logger.warning(
        "this version of httpcore is unknown: %s; use AsyncioTransport, or another httpcore",
        consequence,
    )


def find_pool(client: Any, url: object) -> Any:
    """Return the pool that serves a URL.

    Raises:
        AttributeError: If the transport has no pool.
    """
    return get_pool(client._transport_for_url(url))


def get_pool(transport: Any) -> Any:
    """Return the pool of a transport, also if it is wrapped for retries or a cache.

    Raises:
        AttributeError: If the transport has no pool.
    """
    # `AsyncioTransport` creates its pool on first access, which imports httpcore.
    while "_pool" not in (attributes := getattr(transport, "__dict__", {})):
        values = attributes.values()
        transport = next((a for a in values if hasattr(a, "handle_async_request")), None)
        if transport is None:
            raise AttributeError("the transport has no pool")
    return transport._pool


def change_new_connections(pool: Any, change: Callable[[Any, Any], None]) -> None:
    """Call `change` with each new connection of a pool, and its origin. It is added only once."""
    if hasattr(pool, "_changes"):
        if change not in pool._changes:
            pool._changes.append(change)
        return
    changes = [change]
    pool._changes = changes
    create = pool.create_connection

    def create_connection(origin: Any) -> Any:
        connection = create(origin)
        for change in changes:
            change(connection, origin)
        return connection

    pool.create_connection = create_connection


def _find_pool_stream(response: Any) -> Any:
    """Return httpcore's stream of a response, which holds the place in the pool, or None."""
    stream: Any = response.stream
    while not hasattr(stream, "_pool_request"):
        inner = getattr(stream, "_stream", getattr(stream, "_httpcore_stream", None))
        if inner is None:
            if is_of_httpcore(stream):
                warn_of_unknown_httpcore(_POOL_IS_LOST)
            return None
        stream = inner
    return stream


async def clean_up_pool(client: Any, url: object, failure: BaseException) -> None:
    """Undo what httpcore left behind when a request failed or was cancelled.

    It takes at most `CLEAN_UP_TIMEOUT` seconds.
    """
    if not isinstance(failure, Exception):
        await _close_unfinished_tls(failure)
    try:
        pool = find_pool(client, url)
    except AttributeError:  # another transport
        return
    await _clean_up(pool)


async def _close_unfinished_tls(cancelled: BaseException) -> None:
    """Close the socket of a TLS handshake that was cancelled.

    httpcore 1.0.9 closes it for an `Exception` only, and nothing else refers to it. Delete this
    when `start_tls` of httpcore's backends closes the socket for a `BaseException` too.
    """
    frames = [frame for frame, _ in walk_tb(cancelled.__traceback__)]
    of_httpcore = [f for f in frames if "httpcore" in f.f_globals.get("__name__", "")]
    found = False
    for frame in of_httpcore:
        variable = _STREAM_VARIABLES.get(frame.f_code.co_name, "")
        if (stream := frame.f_locals.get(variable)) is not None:
            found = True
            with anyio.move_on_after(CLEAN_UP_TIMEOUT, shield=True):
                await stream.aclose()
    if of_httpcore and not found and any(f.f_code.co_name in _HANDSHAKES for f in frames):
        warn_of_unknown_httpcore("a cancelled TLS handshake may leave its socket open")


def holds_pool_place(response: Any) -> bool:
    """Return whether a closed response may still occupy a place in httpcore's pool.

    httpcore 1.0.9 marks a response as closed before it closes it. If the task is cancelled in
    between, the request stays in the pool for good. Delete this when httpcore shields its own
    closing from `task.cancel()`, with `clean_up_after`.
    """
    stream = _find_pool_stream(response)
    if stream is None:
        return False
    try:
        pool = stream._pool
        return stream._pool_request in pool._requests or bool(_find_stranded(pool))
    except AttributeError:
        warn_of_unknown_httpcore(_POOL_IS_LOST)
        return False


async def clean_up_after(response: Any) -> None:
    """Give the place of a closed response back to the pool, if httpcore did not."""
    stream = _find_pool_stream(response)
    if stream is None or _was_returned(stream, response):
        return
    with suppress(AttributeError, ValueError):  # another version; usually it is already removed
        # asyncio may be closing the response too, when it finalizes a generator that was dropped.
        for _ in range(MAX_CLOSING_TURNS):
            if stream._pool_request not in stream._pool._requests:
                break
            await anyio.lowlevel.checkpoint()
        else:
            stream._pool._requests.remove(stream._pool_request)
    await _clean_up(getattr(stream, "_pool", None))


def _was_returned(stream: Any, response: Any) -> bool:
    """Return whether the pool has the place and the connection back, as usual.

    An HTTP/2 connection may have an abandoned stream all the same.
    """
    try:
        request = stream._pool_request
        connection = request.connection
        return (
            response.http_version != "HTTP/2"
            and request not in stream._pool._requests
            and (connection.is_idle() or connection.is_closed())
        )
    except AttributeError:
        return False


async def _clean_up(pool: Any) -> None:
    with anyio.move_on_after(CLEAN_UP_TIMEOUT, shield=True):
        await close_stranded_connections(pool)
        await reset_abandoned_streams(pool)


def _find_stranded(pool: Any) -> list[Any]:
    used = {id(request.connection) for request in pool._requests}
    return [
        connection
        for connection in pool._connections
        if id(connection) not in used and not (connection.is_idle() or connection.is_closed())
    ]


async def close_stranded_connections(pool: Any) -> None:
    """Close connections that no request uses, and give their places to the waiting requests.

    If httpcore 1.0.9 is cancelled or times out when the pool assigns a new connection, or while it
    closes a response, the connection stays in the pool for good, neither idle nor closed. A busy
    pool can lose all its places like that. httpx2 has a fix for the first case only. Delete this
    when https://github.com/encode/httpcore/issues/1093 is fixed in the oldest supported version.
    """
    try:
        stranded = _find_stranded(pool)
        for connection in stranded:
            pool._connections.remove(connection)
        closing = [*stranded, *pool._assign_requests_to_connections()]
    except AttributeError:
        if is_of_httpcore(pool):
            warn_of_unknown_httpcore(_POOL_IS_LOST)
        return
    for connection in closing:
        await connection.aclose()


def end_connection_if_unusable(upstream: Any, *, has_ended: bool) -> None:
    """Close a connection that has bytes after the response body, or that TLS has ended.

    httpcore 1.0.9 takes such bytes for the next response (RFC 9112 6.3), and sends the next request
    after a close_notify. Delete this when httpcore checks h11's `trailing_data` and the end of a
    body without a length before it keeps a connection.
    """
    stream = upstream.stream
    while (
        inner := getattr(stream, "_stream", getattr(stream, "_httpcore_stream", None))
    ) is not None:
        stream = inner
    connection = getattr(stream, "_connection", None)
    state = getattr(connection, "_h11_state", None)
    if state is not None:
        if state.trailing_data[0] or has_ended:
            state.send_failed()  # h11 now reports an error, so httpcore closes the connection
    elif is_of_httpcore(stream) and not hasattr(connection, "_h2_state"):
        warn_of_unknown_httpcore("bytes after a response are not detected")


async def reset_abandoned_streams(pool: Any) -> None:
    """Reset the HTTP/2 streams that httpcore abandoned (RFC 9113 5.4.2).

    httpcore 1.0.9 sends no RST_STREAM when a response is closed early. The upstream then produces
    the rest, and unread data is never acknowledged, so that the whole connection stalls. Delete
    this when httpcore sends RST_STREAM itself, and reads what is still on the way.
    """
    try:
        for pooled in list(pool._connections):
            speaks_http2 = hasattr(pooled._connection, "_h2_state")
            if speaks_http2 and await _reset_streams_of(pooled._connection):
                await _read_to_last_reset(pooled)
    except AttributeError:
        if is_of_httpcore(pool):
            warn_of_unknown_httpcore("HTTP/2 streams are not reset")
    except Exception:  # a closed connection
        logger.debug("HTTP/2 streams could not be reset", exc_info=True)


async def _reset_streams_of(connection: Any) -> bool:
    """Return whether one of the streams had a response, whose body may be on the way."""
    state, had_response = connection._h2_state, False
    for number, stream in list(state.streams.items()):
        if number in connection._events or stream.closed:
            continue
        window = stream._inbound_window_manager
        unread = window.max_window_size - window.current_window_size - window._bytes_processed
        if unread > 0:
            state.acknowledge_received_data(unread, number)
        state.reset_stream(number, _CANCEL)
        had_response = had_response or bool(stream.state_machine.headers_received)
    async with connection._write_lock:
        if data := state.data_to_send():
            await connection._network_stream.write(data, CLEAN_UP_TIMEOUT)
    return had_response


async def _read_to_last_reset(pooled: Any) -> None:
    """Read what the upstream sent before it saw the resets. Close the connection if it sees none.

    httpcore does not read an idle connection. An upstream that waits until its write is complete
    would see the reset only when the next request comes.
    """
    # A connection that was there before the client's first exchange has no `ping`.
    if ping := getattr(pooled._connection, "ping", None):
        with anyio.move_on_after(PING_TIMEOUT):
            await ping()
            return
    if pooled.is_idle():
        await pooled.aclose()


class EarlyResponseDetector:
    """Tells whether the upstream refused a request before its body was sent.

    httpcore 1.0.9 reads nothing until it has sent the whole body. Delete this when httpcore reads
    while it sends.
    """

    def __init__(self, client: Any, url: object, stream: object) -> None:
        self._socket: Any = None
        self.write_error: type[Exception] = OSError
        try:
            pool: Any = find_pool(client, url)
        except AttributeError:  # another transport
            return
        try:
            httpcore = sys.modules[type(pool).__module__.partition(".")[0]]
            requests = (r for r in pool._requests if r.request.stream is stream)
            connection: Any = next(requests).connection
            while hasattr(connection, "_connection"):
                connection = connection._connection
            network_stream = connection._network_stream
            self.write_error = httpcore.WriteError
        except StopIteration:  # another transport in between
            return
        except AttributeError:
            if is_of_httpcore(pool):
                warn_of_unknown_httpcore("an early response to an upload is not detected")
            return
        # anyio asks the socket for its names, and it may be gone.
        with suppress(AttributeError, OSError, ValueError):
            self._socket = network_stream.get_extra_info("socket")

    @property
    def can_detect(self) -> bool:
        """Whether the request is on a connection of httpcore, which does not read by itself."""
        return self._socket is not None

    def available(self) -> bool:
        """Return whether the upstream has answered with 300 or more, or has closed the connection.

        False for TLS.
        """
        if self._socket is None or self._socket.fileno() < 0:  # closed
            return False
        with socket.socket(fileno=self._socket.fileno()) as sock:
            try:
                start = sock.recv(10, socket.MSG_PEEK)  # The socket is non-blocking.
            except OSError:
                return False
            finally:
                sock.detach()
        return not start or (start[:7] == b"HTTP/1." and start[9:] >= b"3")

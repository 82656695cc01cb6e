"""Workarounds for faults of httpcore 1.0.9 on HTTP/2 connections.

- At a graceful GOAWAY, httpcore fails every stream of the connection, also those that the upstream
  still answers (RFC 9113 6.8). nginx sends one every 1,000 requests, and when it reloads.
- httpcore takes a response without a `:status` for a 200, and `+200` or `2_00` too (8.3.2).
- If a request is cancelled during a write, bytes are lost, and all requests on the connection fail.
- It sends no PING, whose acknowledgement tells that the upstream has seen a reset (6.7).

Delete this module when httpcore does better.
"""

import re
import sys
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from functools import cache, partial
from typing import Any
from weakref import WeakKeyDictionary

import anyio

from .._logging import logger
from .cancellation import defer_cancellation
from .workarounds import change_new_connections, get_pool, is_of_httpcore, warn_of_unknown_httpcore

_STATUS = re.compile(rb":status: [1-9]\d\d")
MAX_WRITE_TIME = 60.0
"""Longest time that a write may block without a write timeout, in seconds."""

_LAST_STREAM_ID = 2**31 - 1
_REFUSED = "the upstream's GOAWAY refused the request"


def prepare_http2_pools(client: Any) -> None:
    """Prepare the pools of a client that speak HTTP/2 and are not prepared yet.

    After a GOAWAY, a connection finishes its streams up to the last that the upstream accepted. It
    takes no more requests. Requests that the upstream did not accept are sent on another
    connection, unless their body is a stream.
    """
    mounts: dict[object, Any] = getattr(client, "_mounts", {})
    for transport in (getattr(client, "_transport", None), *mounts.values()):
        with suppress(AttributeError):  # another transport
            pool = get_pool(transport)
            if pool._http2:
                change_new_connections(pool, _watch)


def _watch(connection: Any, origin: object) -> None:
    connection.__class__ = _watched_class(connection.__class__)


class _WatchedConnection:
    """A connection of httpcore's pool, which gets its HTTP/2 connection when it has connected."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if hasattr(value, "_h2_state"):
            try:
                _ConnectionWatch(value)
            except (AttributeError, StopIteration):
                if is_of_httpcore(value):
                    warn_of_unknown_httpcore("a GOAWAY ends all streams of its connection")


@cache
def _watched_class(connection_class: Any) -> Any:
    return type(connection_class.__name__, (_WatchedConnection, connection_class), {})


class _ConnectionWatch:
    """Replaces what an HTTP/2 connection of httpcore does at a GOAWAY and with a head."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._httpcore = sys.modules[type(connection).__module__.partition(".")[0]]
        self._read_incoming_data = connection._read_incoming_data
        self._send_request_body = connection._send_request_body
        self._receive_response = connection._receive_response
        self._receive_stream_event = connection._receive_stream_event
        self._last_accepted = 0
        self._pings = self._acknowledged_pings = 0
        self._uploads = WeakKeyDictionary[Any, int]()
        handlers = connection._h2_state._frame_dispatch_table
        goaway = next(frame for frame in handlers if frame.__name__ == "GoAwayFrame")
        self._fail_all_streams = handlers[goaway]
        handlers[goaway] = self._receive_goaway
        connection._read_incoming_data = self.read_incoming_data
        connection._send_request_body = self.send_request_body
        connection._receive_response = self.receive_response
        connection._receive_stream_event = self.receive_stream_event
        connection.ping = self.ping
        try:
            stream = connection._network_stream
            stream.write = partial(self._write, stream.write)
        except AttributeError:
            warn_of_unknown_httpcore("a cancelled request may break its HTTP/2 connection")

    async def _write(self, write: Any, buffer: bytes, timeout: float | None = None) -> None:
        """Write everything before a cancellation takes effect.

        A part of a frame or TLS record would break the connection for all its requests.
        """

        async def write_all() -> None:
            with anyio.CancelScope(shield=True):
                await write(buffer, MAX_WRITE_TIME if timeout is None else timeout)

        await defer_cancellation(write_all())

    def _receive_goaway(self, frame: Any) -> Any:
        if frame.error_code:
            return self._fail_all_streams(frame)
        connection, self._last_accepted = self._connection, frame.last_stream_id
        logger.debug("GOAWAY after stream %d: the connection ends", frame.last_stream_id)
        # It takes no more requests, and closes after the last response.
        connection._used_all_stream_ids = True
        connection._h2_state.highest_outbound_stream_id = _LAST_STREAM_ID
        for number in connection._events:
            if number > frame.last_stream_id:
                connection._events[number] = _RefusedEvents(self._httpcore.RemoteProtocolError)
        return [], []

    async def ping(self) -> None:
        """Send a PING, and read until the upstream has acknowledged it (RFC 9113 6.7)."""
        self._pings += 1
        ping = _Ping(self._pings)
        self._connection._h2_state.ping(ping.number.to_bytes(8))
        await self._connection._write_outgoing_data(ping)
        takes_lock = self._httpcore.__name__ == "httpcore"  # httpcore2 leaves it to its callers.
        while self._acknowledged_pings < ping.number:
            async with nullcontext() if takes_lock else self._connection._read_lock:
                await self._connection._receive_events(ping)
            await self._connection._write_outgoing_data(ping)

    async def read_incoming_data(self, request: object) -> Any:
        if isinstance(request, _Ping) and self._acknowledged_pings >= request.number:
            return []  # Another task has read it.
        if self._is_refused(self._uploads.get(request, 0)):
            raise self._httpcore.RemoteProtocolError(_REFUSED)  # It will get no more window.
        events, connection = await self._read_incoming_data(request), self._connection
        if self._acknowledged_pings < self._pings:
            for event in events:
                if type(event).__name__ == "PingAckReceived":
                    self._acknowledged_pings = int.from_bytes(event.ping_data)
        waiting = connection._max_streams_semaphore
        if connection._used_all_stream_ids and not isinstance(waiting, _NoLimit):
            connection._max_streams_semaphore = _NoLimit()
            with suppress(ValueError):  # All requests that waited for a stream look elsewhere.
                while True:
                    await waiting.release()
        return events

    async def send_request_body(self, request: Any, stream_id: int) -> Any:
        self._uploads[request] = stream_id
        return await self._repeat_if_refused(self._send_request_body, request, stream_id)

    async def receive_response(self, request: Any, stream_id: int) -> Any:
        return await self._repeat_if_refused(self._receive_response, request, stream_id)

    async def receive_stream_event(self, request: object, stream_id: int) -> Any:
        event = await self._receive_stream_event(request, stream_id)
        if headers := getattr(event, "headers", None):
            pseudo_headers = [field for field in headers if field[0][:1] == b":"]
            if len(pseudo_headers) != 1 or not _STATUS.fullmatch(b"%b: %b" % pseudo_headers[0]):
                raise self._httpcore.RemoteProtocolError("malformed :status")
        return event

    async def _repeat_if_refused(self, method: Any, request: Any, stream_id: int) -> Any:
        """Let the pool send a request again that the upstream did not accept."""
        core = self._httpcore
        try:
            return await method(request=request, stream_id=stream_id)
        except (core.ProtocolError, core.NetworkError) as exc:
            can_repeat = isinstance(getattr(request.stream, "_stream", None), bytes)
            # An upstream that accepts no stream at all could refuse the request for ever.
            if self._is_refused(stream_id) and can_repeat and self._last_accepted:
                raise core.ConnectionNotAvailable from exc
            raise

    def _is_refused(self, stream_id: int) -> bool:
        return isinstance(self._connection._events.get(stream_id), _RefusedEvents)


class _Ping:
    """What httpcore takes for the request that it reads and writes for."""

    extensions: Mapping[str, object] = {}

    def __init__(self, number: int) -> None:
        self.number = number


class _NoLimit:
    """A semaphore that nothing waits for."""

    async def acquire(self) -> None: ...
    async def release(self) -> None: ...


class _RefusedEvents(list[Any]):
    """The events of a stream that the upstream did not accept. To read one raises an exception."""

    def __init__(self, exception_class: type[Exception]) -> None:
        super().__init__([None])  # so that nothing waits for an event
        self._exception_class = exception_class

    def pop(self, _: Any = -1) -> Any:
        raise self._exception_class(_REFUSED)

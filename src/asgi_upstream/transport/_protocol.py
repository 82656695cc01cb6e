"""A socket as an asyncio protocol, below HTTP."""

import asyncio
import functools
import select
import ssl
import sys
from collections.abc import Callable
from typing import Any, cast

from .._httpx.interfaces import HTTPXModule
from ._timeouts import Timeouts


class SocketProtocol(asyncio.Protocol):
    """Writes to a socket and pauses its reading, with timeouts. It closes once, in any state.

    A subclass decides what the bytes mean. It has `data_received` and `receive_eof`.

    Attributes:
        closed: Whether this side or the upstream has closed the connection.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, library: HTTPXModule) -> None:
        self.closed: bool = False
        self.loop: asyncio.AbstractEventLoop = loop
        self._library = library  # whose exceptions are raised
        self._timeouts = Timeouts(loop, library)
        self._transport = cast(asyncio.Transport, None)
        self._poll: Callable[[], object] | None = None
        self._failure: BaseException | None = None
        self._reading_paused = self._writing_paused = False

    async def write(self, data: bytes, timeout: float | None) -> None:
        """Send bytes of a request body or of an upgraded connection."""
        if self.closed:
            raise self._library.WriteError("the connection is closed")
        self._transport.write(data)
        if self._writing_paused:
            try:
                await self._timeouts.start_writing(timeout)
            finally:
                self._timeouts.writer = None
            if self.closed:
                raise self._library.WriteError("the connection is closed")

    def close(self) -> None:
        """Close at once, in any state."""
        if not self.closed:
            self.closed = True
            self._timeouts.cancel()
            self._transport.abort()

    def fail(self, failure: BaseException) -> None:
        """Close, and raise `failure` in the reader and the writer."""
        if self._failure is None:
            self._failure = failure
        self.close()
        self._wake_all()

    def get_extra_info(self, name: str) -> Any:
        return self._transport.get_extra_info(name)

    def receive_eof(self, exc: Exception | None, *, truncated: bool = False) -> None:
        """Handle the end of the connection.

        Arguments:
            exc: The error that ended it.
            truncated: Whether TLS did not confirm the end, so that bytes may be missing
                (RFC 9112 9.8).
        """
        raise NotImplementedError

    def _has_unread_bytes(self) -> bool:
        """Return whether bytes, an end or an error wait at the socket.

        A busy event loop has not read them yet. With TLS, they are usually the end of the
        connection, and only the loop could decrypt them.
        """
        if self._poll is None:
            self._poll = _create_poll(self._transport.get_extra_info("socket"))
        return bool(self._poll())

    def _pause_reading(self) -> None:
        if not self._reading_paused:
            self._reading_paused = True
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        self._reading_paused = False
        if not self.closed:
            self._transport.resume_reading()

    def _wake_all(self) -> None:
        self._timeouts.wake_reader()
        self._timeouts.wake_writer()

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def eof_received(self) -> None:
        self.receive_eof(None, truncated=_lacks_close_notify(self._transport))

    def connection_lost(self, exc: Exception | None) -> None:
        # uvloop does not call `eof_received` first if TLS ends without close_notify.
        self.receive_eof(exc, truncated=True)

    def pause_writing(self) -> None:
        self._writing_paused = True

    def resume_writing(self) -> None:
        self._writing_paused = False
        self._timeouts.wake_writer()


def _create_poll(sock: Any) -> Callable[[], object]:
    """Return a function whose result is true if data, an end or an error waits at the socket."""
    if sock is None:  # a transport in memory
        return lambda: False
    if sock.fileno() < 0:  # already closed
        return lambda: True
    if sys.platform == "win32":  # where select has no poll
        return lambda: select.select([sock], [], [], 0)[0]
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    return functools.partial(poll.poll, 0)


def _lacks_close_notify(transport: asyncio.BaseTransport) -> bool:
    """Return whether TLS ended without close_notify, as in a truncation attack (RFC 9112 9.8)."""
    ssl_object: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
    if ssl_object is None:
        return False
    try:
        # asyncio has read all data. Now only close_notify makes this return, without a byte.
        return ssl_object.read(1) != b""
    except ssl.SSLError as exc:
        return not isinstance(exc, ssl.SSLZeroReturnError)

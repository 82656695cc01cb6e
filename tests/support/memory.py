"""An event loop whose time costs nothing, and a socket in memory that keeps asyncio's rules.

On this loop a wait that nothing can end is found at once: nothing is ready, and no timer is set.
"""

import asyncio
import re
import selectors
from collections import deque
from collections.abc import Callable
from typing import Any

from asgi_upstream.transport._connection import ConnectionOwner, HTTP11Connection
from asgi_upstream.transport._pool_state import Origin
from tests.support.flavor import AsyncioTransport, httpx

MOST_READ = 256 * 1024  # bytes that asyncio reads at once
_CHUNK = re.compile(rb"([0-9a-f]+)\r\n")
_TLS = httpx.create_ssl_context(verify=False)  # made once, for it takes long


class StuckError(Exception):
    """Something waits for what will never come, or never stops."""


class _NoSockets(selectors.SelectSelector):
    """Waits by setting the clock on."""

    MOST_TURNS = 100_000

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.turns = 0

    def select(self, timeout: float | None = None) -> list[Any]:
        self.turns += 1
        if timeout is None:
            raise StuckError("nothing will ever happen again")
        if self.turns > self.MOST_TURNS:
            raise StuckError("it does not come to an end")
        self.now += max(0, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop without sockets. `complaints` is what its exception handler was told."""

    def __init__(self) -> None:
        self._clock = _NoSockets()
        super().__init__(self._clock)
        self.complaints: list[dict[str, Any]] = []
        self.set_exception_handler(lambda loop, context: self.complaints.append(context))

    def time(self) -> float:
        return self._clock.now

    def act(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call it as the loop does, without a turn of it before or after."""
        asyncio._set_running_loop(self)
        try:
            return function(*arguments)
        finally:
            asyncio._set_running_loop(None)


class MemorySocket(asyncio.Transport):
    """The near end of a socket, as a connection sees it; the test is at the far end.

    What is written is buffered here until the far end takes it, at once where it `drains`.
    """

    HIGH, LOW = 64 * 1024, 16 * 1024

    def __init__(self, connection: HTTP11Connection, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.connection = connection
        self.loop = loop
        self.taken = bytearray()  # by the far end
        self.draining = True
        self.closing = False
        self.lost = False
        self.paused = False
        self.on_write: Callable[[], None] = lambda: None
        self._buffer = bytearray()
        self._writing_paused = False
        self._coming: deque[bytes | Exception | None] = deque()
        self._broken = False
        connection.connection_made(self)

    # The near end.

    def write(self, data: Any) -> None:
        if self.closing:
            return
        if self._broken:
            self._lose(BrokenPipeError())
            return
        self._buffer += data
        if self.draining:
            self.take()
        elif len(self._buffer) > self.HIGH and not self._writing_paused:
            self._writing_paused = True
            self.connection.pause_writing()
        self.on_write()

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        if self.paused:
            self.paused = False
            self.loop.call_soon(self._read)

    def abort(self) -> None:
        self._lose(None)

    close = abort

    def is_closing(self) -> bool:
        return self.closing

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    # The far end.

    @property
    def has_more(self) -> bool:
        """Whether anything is under way, in either direction."""
        return bool(self._coming or self._buffer or self.closing)

    @property
    def unread(self) -> int:
        """Bytes that are here, and that the connection has not read."""
        return sum(len(one) for one in self._coming if isinstance(one, bytes))

    @property
    def unsent(self) -> int:
        return len(self._buffer)

    def take(self, most: int | None = None) -> None:
        """Take what is written, or some of it."""
        most = len(self._buffer) if most is None else most
        self.taken += self._buffer[:most]
        del self._buffer[:most]
        self.on_write()
        if self._writing_paused and not self.closing and len(self._buffer) <= self.LOW:
            self._writing_paused = False
            self.connection.resume_writing()

    def feed(self, data: bytes) -> None:
        for start in range(0, len(data), MOST_READ):
            self._add(data[start : start + MOST_READ])

    def end(self) -> None:
        self._add(None)

    def reset(self) -> None:
        self._broken = True
        self._add(ConnectionResetError("reset by the test"))
        if self._buffer:
            self.loop.call_soon(self._lose, ConnectionResetError("reset by the test"))

    def _add(self, one: bytes | Exception | None) -> None:
        self._coming.append(one)
        self.loop.call_soon(self._read)

    def _read(self) -> None:
        """One read from the socket, of one piece."""
        if self.paused or self.closing or not self._coming:
            return
        one = self._coming.popleft()
        if isinstance(one, bytes):
            self.connection.data_received(one)
        elif one is None:
            self.connection.eof_received()
            self.close()
        else:
            self._lose(one)
        self.loop.call_soon(self._read)

    def _lose(self, exc: Exception | None) -> None:
        if not self.closing:
            self.closing = True
            self._buffer.clear()
            self.loop.call_soon(self._tell, exc)

    def _tell(self, exc: Exception | None) -> None:
        self.lost = True
        self.connection.connection_lost(exc)
        self.on_write()


class InMemory(AsyncioTransport):
    """AsyncioTransport whose connections are wires; `connected` is called with each of them."""

    connecting_takes = 0.0

    def __init__(self, connected: Callable[[MemorySocket], None], **options: Any) -> None:
        super().__init__(verify=_TLS, **options)
        self.connected = connected
        self.wires: list[MemorySocket] = []
        self._connector.open = self.open  # type: ignore[method-assign]

    async def open(self, origin: Origin, owner: ConnectionOwner) -> HTTP11Connection:
        await asyncio.sleep(self.connecting_takes)
        loop = asyncio.get_running_loop()
        wire = MemorySocket(HTTP11Connection(owner, loop, httpx), loop)
        self.wires.append(wire)
        self.connected(wire)
        return wire.connection


def end_of_body(data: bytearray, at: int, head: bytes) -> int | None:
    """Where the body of a request ends, if that has come."""
    if match := re.search(rb"content-length: (\d+)", head, re.IGNORECASE):
        end = at + int(match[1])
        return end if len(data) >= end else None
    if b"chunked" in head.lower():
        while True:
            line = _CHUNK.match(data, at)
            if line is None:
                return None
            at = line.end() + int(line[1], 16) + 2
            if len(data) < at:
                return None
            if int(line[1], 16) == 0:
                return at
    return at

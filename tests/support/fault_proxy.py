"""A TCP proxy that does to connections what networks and dying peers do.

    with FaultProxy(upstream.port) as proxy:
        proxy.fault = Fault(End.RESET, down=100)
        ...  # connect to proxy.port

`up` is the way to the upstream, `down` the way back.
"""

import asyncio
import contextlib
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Literal, Self

from asgi_upstream.testing._listening import LoopbackServer, reset


class Ending(Enum):
    """How a connection ends."""

    CLOSE = auto()
    """By a FIN; what still comes is read and thrown away, so that no RST follows."""
    RESET = auto()
    """By an RST."""
    SILENT = auto()
    """Half-open: it stays, what comes is read, and nothing is forwarded any more, nor an end."""
    DEAF = auto()
    """It stays, and nothing is read any more: who sends is stuck once the buffers are full."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to each connection; with no arguments, nothing.

    Attributes:
        end: how it ends, once the first of `up` and `down` is reached; at once where both are None.
        up: bytes that pass to the upstream before that.
        down: bytes that pass back from it before that.
        delay: seconds that each piece is held back.
        piece: the most bytes that are forwarded at once; 1 is a trickle, with `delay` between.
        only: the way that `delay` and `piece` are about; both where None.
    """

    end: Ending | None = None
    up: int | None = None
    down: int | None = None
    delay: float = 0.0
    piece: int = 65536
    only: Literal["up", "down"] | None = None


class FaultProxy:
    """The proxy, in a thread of its own.

    A new fault holds for the connections that are open, too. Their bytes are counted from then on.
    """

    def __init__(self, upstream_port: int) -> None:
        self.upstream_port = upstream_port
        self.accepted = 0
        """Connections so far."""
        self._fault = Fault()
        self._links: set[_Link] = set()
        self._listening = LoopbackServer(self._connection)

    def __enter__(self) -> Self:
        self.port = self._listening.__enter__().port
        return self

    def __exit__(self, *exc: object) -> None:
        self._listening.__exit__()

    @property
    def open(self) -> int:
        """Connections that whoever made them has not closed."""
        return len(self._links)

    @property
    def fault(self) -> Fault:
        return self._fault

    @fault.setter
    def fault(self, fault: Fault) -> None:
        def change() -> None:
            self._fault = fault
            for link in list(self._links):
                link.begin(fault)

        self._call(change)

    def cut(self, end: Ending) -> None:
        """End all connections that are open, as they are, and none that come."""

        def end_all() -> None:
            for link in list(self._links):
                link.begin(Fault(end))

        self._call(end_all)

    def _call(self, function: Callable[[], None]) -> None:
        """Call it in the loop of the proxy, and wait until that is done."""
        done = threading.Event()

        def act() -> None:
            function()
            self._listening.loop.call_soon(done.set)  # behind the sockets that close

        self._listening.loop.call_soon_threadsafe(act)
        assert done.wait(10)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        link = _Link(reader, writer, self._fault)
        self._links.add(link)
        try:
            await link.run(self.upstream_port)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._links.discard(link)
            link.close()


class _Link:
    """One connection to the proxy, and one from there to the upstream."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, fault: Fault
    ) -> None:
        self._caller = reader, writer
        self._upstream: asyncio.StreamWriter | None = None
        self._forwards = True
        self._hears = asyncio.Event()
        self.begin(fault)

    def begin(self, fault: Fault) -> None:
        self._fault = fault
        self._left_up = math.inf if fault.up is None else fault.up
        self._left_down = math.inf if fault.down is None else fault.down
        self._hears.set()
        if fault.end is not None and fault.up is None and fault.down is None:
            self._end()

    async def run(self, port: int) -> None:
        reader, writer = self._caller
        down: asyncio.Task[None] | None = None
        if self._forwards:
            from_upstream, self._upstream = await asyncio.open_connection("127.0.0.1", port)
            down = asyncio.ensure_future(self._pump_down(from_upstream, writer))
        try:
            await self._pump_up(reader)
        finally:
            if down is not None:
                down.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await down

    async def _pump_up(self, reader: asyncio.StreamReader) -> None:
        """Until whoever made the connection closes it."""
        while data := await self._read(reader, "up"):
            data, rest = self._split(data, self._left_up)
            self._left_up -= len(data)
            if self._forwards and self._upstream is not None:
                with contextlib.suppress(OSError):  # its end comes down
                    self._upstream.write(data)
                    await self._upstream.drain()
            if self._left_up == 0 or rest:
                self._end()

    async def _pump_down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await self._read(reader, "down"):
                data, rest = self._split(data, self._left_down)
                self._left_down -= len(data)
                if self._forwards:
                    writer.write(data)
                    await writer.drain()
                if self._left_down == 0 or rest:
                    await asyncio.sleep(0.05)  # or an RST may overtake it
                    self._end()
            if self._forwards:
                writer.write_eof()
        except OSError:
            if self._forwards:
                reset(writer)

    async def _read(self, reader: asyncio.StreamReader, way: str) -> bytes:
        await self._hears.wait()
        slow = self._fault.only in (way, None)
        data = await reader.read(self._fault.piece if slow else 65536)
        await self._hears.wait()
        if slow and self._forwards:
            await asyncio.sleep(self._fault.delay)
        return data

    def _split(self, data: bytes, left: float) -> tuple[bytes, bytes]:
        at = int(min(len(data), left))
        return data[:at], data[at:]

    def _end(self) -> None:
        """Do what the fault says, once."""
        if not self._forwards:
            return
        self._forwards = False
        if self._fault.end is Ending.DEAF:
            self._hears.clear()
        elif self._fault.end is Ending.CLOSE:
            self._caller[1].write_eof()
        elif self._fault.end is Ending.RESET:
            reset(self._caller[1])
        if self._fault.end in (Ending.CLOSE, Ending.RESET):
            self._drop_upstream()

    def _drop_upstream(self) -> None:
        if self._upstream is not None:
            self._upstream.transport.abort()

    def close(self) -> None:
        self._drop_upstream()
        with contextlib.suppress(Exception):
            self._caller[1].close()

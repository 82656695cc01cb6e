"""The read and write timeouts of a connection."""

import asyncio
import math

from .._httpx.interfaces import HTTPXModule


class Timeouts:
    """Read and write timeouts of one connection, with a single timer.

    The timer is usually left running when a wait ends, because to set one costs more than to let
    it fire.
    """

    __slots__ = (
        "_library",
        "_loop",
        "_read_deadline",
        "_timer",
        "_write_deadline",
        "reader",
        "writer",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, library: HTTPXModule) -> None:
        self.reader: asyncio.Future[None] | None = None
        self.writer: asyncio.Future[None] | None = None
        self._loop = loop
        self._library = library
        self._read_deadline = self._write_deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start_reading(self, timeout: float | None) -> asyncio.Future[None]:
        """Return a future that is done when `wake` is called or `timeout` seconds have passed."""
        self.reader = self._loop.create_future()
        self._read_deadline = self._arm(timeout)
        return self.reader

    def restart_reading(self, timeout: float | None) -> None:
        self._read_deadline = self._arm(timeout)

    def start_writing(self, timeout: float | None) -> asyncio.Future[None]:
        self.writer = self._loop.create_future()
        self._write_deadline = self._arm(timeout)
        return self.writer

    def wake_reader(self) -> None:
        if self.reader is not None and not self.reader.done():
            self.reader.set_result(None)

    def wake_writer(self) -> None:
        if self.writer is not None and not self.writer.done():
            self.writer.set_result(None)

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self, timeout: float | None) -> float:
        if timeout is None:
            return math.inf
        deadline = self._loop.time() + timeout
        if self._timer is not None and self._timer.when() > deadline:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._timer = self._loop.call_at(deadline, self._on_timer)
        return deadline

    def _on_timer(self) -> None:
        self._timer = None
        now, next_deadline = self._loop.time(), math.inf
        if self.reader is not None and not self.reader.done():
            if self._read_deadline <= now:
                self.reader.set_exception(self._library.ReadTimeout(""))
            else:
                next_deadline = self._read_deadline
        if self.writer is not None and not self.writer.done():
            if self._write_deadline <= now:
                self.writer.set_exception(self._library.WriteTimeout(""))
            else:
                next_deadline = min(next_deadline, self._write_deadline)
        if next_deadline < math.inf:
            self._timer = self._loop.call_at(next_deadline, self._on_timer)

"""Limits how long each read of a body may take."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import anyio

T = TypeVar("T")


class ReadTimeout:
    """Limits the reads of one body, one at a time.

    On asyncio, one timer serves all reads. It is usually left running when a read ends. A cancel
    scope for each read would cost more than the read itself.

    Arguments:
        seconds: The limit for each read, or None.
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._deadline = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None  # only while a read is in progress
        self._timer: asyncio.TimerHandle | None = None
        self._expired = False

    async def limit(self, read: Coroutine[Any, Any, T]) -> T:
        """Return the result of `read`.

        Raises:
            TimeoutError: If it took too long.
        """
        if self._seconds is None:
            return await read
        loop = self._loop
        if loop is None:
            try:
                loop = self._loop = asyncio.get_running_loop()
            except RuntimeError:  # trio
                with anyio.fail_after(self._seconds):
                    return await read
        task = self._task = asyncio.current_task(loop)
        assert task is not None
        cancelling = task.cancelling()
        self._deadline = loop.time() + self._seconds
        if self._timer is None:
            self._timer = loop.call_at(self._deadline, self._check, loop)
        try:
            return await read
        except asyncio.CancelledError:
            # Another cancellation may have come at the same time. Then it continues.
            if self._expired and task.cancelling() <= cancelling + 1:
                raise TimeoutError from None
            raise
        finally:
            self._task = None
            if self._expired:
                self._expired = False
                task.uncancel()

    def close(self) -> None:
        """Cancel the timer after the last read."""
        if self._timer is not None:
            self._timer.cancel()

    def _check(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        if self._task is None:
            return  # The next read starts the timer again.
        if loop.time() < self._deadline:
            self._timer = loop.call_at(self._deadline, self._check, loop)
        else:
            self._expired = True
            self._task.cancel()

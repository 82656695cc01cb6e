"""Reads a body so that a cancelled read loses nothing."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator
from typing import Any, Protocol, Self, cast

import anyio

from .._httpx.interfaces import HTTPXModule

STOP_TIMEOUT = 5.0
"""Seconds that the end of a read may take after its cancellation."""

StartTask = Callable[[Callable[[], Coroutine[Any, Any, None]]], None]


class ResumableBody(AsyncIterator[bytes]):
    """Reads a body in a task of its own, so that a cancelled read loses nothing.

    The next read continues the one that was cancelled. The task reads only on demand, and it starts
    with the first read. Use `stop` to end it.

    Arguments:
        start_task: Starts a function in a task that the exchange owns.
    """

    def __init__(
        self, source: AsyncIterator[bytes], start_task: StartTask, library: HTTPXModule
    ) -> None:
        self._source = source
        self._start_task = start_task
        self._library = library
        self._scope = anyio.CancelScope()
        self._started = self._requested = self._reading = False
        self._reader: _Waiter | None = None  # the read that waits for a chunk
        self._idle: _Waiter | None = None  # the task that waits for a read
        self._stopped = anyio.Event()
        self._chunk: bytes | None = None
        self._end: Exception | None = None  # the end of the body, or its failure

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if self._reading:
            raise RuntimeError("another task is already reading this body")
        if self._chunk is None and self._end is None:
            self._request_chunk()
            self._reading = True
            try:
                while self._chunk is None and self._end is None:
                    self._reader = _make_waiter()
                    await self._reader
            finally:
                self._reading = False
        chunk, self._chunk, self._requested = self._chunk, None, False
        if chunk is not None:
            return chunk
        if isinstance(self._end, StopAsyncIteration):
            raise StopAsyncIteration
        assert self._end is not None
        raise self._end

    def _request_chunk(self) -> None:
        if self._requested:
            return  # by a read that was cancelled
        self._requested = True
        if self._started:
            _wake(self._idle)
        else:
            self._started = True
            self._start_task(self._run)

    async def _run(self) -> None:
        try:
            with self._scope:
                while self._end is None:
                    try:
                        self._chunk = await anext(self._source)
                    except StopAsyncIteration:
                        self._end = StopAsyncIteration()  # The other's traceback refers to this.
                    except Exception as exc:
                        self._end = exc
                    _wake(self._reader)
                    while self._end is None and not (self._requested and self._chunk is None):
                        self._idle = _make_waiter()
                        await self._idle
        finally:
            if self._chunk is None and self._end is None:
                self._end = self._library.ReadError("the read was cancelled")
            _wake(self._reader)
            try:
                await self._close_source()
            finally:
                self._stopped.set()

    async def _close_source(self) -> None:
        """Close a generator in the task that ran it, because it may hold cancel scopes."""
        source = self._source
        if isinstance(source, AsyncGenerator):
            with anyio.move_on_after(STOP_TIMEOUT, shield=True):
                await cast("AsyncGenerator[bytes]", source).aclose()

    async def stop(self) -> None:
        """Cancel a read that is in progress, and wait for its end."""
        if self._started and not self._stopped.is_set():
            self._scope.cancel()
            with anyio.move_on_after(STOP_TIMEOUT, shield=True):
                await self._stopped.wait()
        elif not self._started:
            await self._close_source()


class _Waiter(Protocol):
    """Something to await: an `asyncio.Future`, which is cheap, or the same on trio."""

    def __await__(self) -> Generator[Any, Any, None]: ...
    def done(self) -> bool: ...
    def set_result(self, result: None, /) -> None: ...


class _EventWaiter:
    def __init__(self) -> None:
        self._event = anyio.Event()

    def __await__(self) -> Generator[Any, Any, None]:
        return self._event.wait().__await__()

    def done(self) -> bool:
        return self._event.is_set()

    def set_result(self, result: None, /) -> None:
        self._event.set()


def _make_waiter() -> _Waiter:
    try:
        return asyncio.get_running_loop().create_future()
    except RuntimeError:  # trio
        return _EventWaiter()


def _wake(waiter: _Waiter | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)

"""Limits an exchange: it ends at the deadline, or when the caller disconnects."""

import asyncio
import math
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager, AsyncExitStack, nullcontext
from types import TracebackType
from typing import Any, Self

import anyio
from anyio.abc import TaskGroup
from starlette.types import Receive

from .disconnect import DisconnectListener
from .downstream import CallerDisconnected

_NO_TIMEOUT = nullcontext()


class ExchangeScope:
    """Cancels the exchange in its block at the deadline or when the caller disconnects.

    The exchange is cancelled by an anyio cancel scope. If it runs only code of this package, a
    plain `Task.cancel()` does it at a fifth of the cost, like `asyncio.timeout`.

    Arguments:
        deadline: Seconds for the whole exchange.
        plain: Whether the block runs only code of this package on asyncio.

    Attributes:
        deadline_passed: Whether the deadline has passed.
        cancelled_caught: Whether the block was cancelled by this scope.
    """

    deadline_passed: bool = False
    cancelled_caught: bool = False
    _deadline_at: float = math.inf
    _loop: asyncio.AbstractEventLoop | None = None  # None on trio
    _host_task: asyncio.Task[Any] | None = None  # cancelled if there is no anyio scope
    _initial_cancelling = 0
    _cancelled = False
    _stack: AsyncExitStack | None = None
    _group: TaskGroup | None = None  # on trio
    _deadline_handle: asyncio.TimerHandle | None = None
    _poll_handle: asyncio.TimerHandle | None = None
    _tasks: frozenset[asyncio.Task[None]] = frozenset()

    def __init__(self, receive: Receive, deadline: float | None, *, plain: bool) -> None:
        self._deadline = deadline
        self._listener = DisconnectListener(receive, self._cancel)
        self._scope = None if plain else anyio.CancelScope()

    @property
    def disconnected(self) -> bool:
        """Whether the caller has disconnected."""
        return self._listener.disconnected

    @property
    def has_unread_request(self) -> bool:
        """Whether a part of the caller's request may be unread."""
        return not self._listener.started or self._listener.is_draining

    async def __aenter__(self) -> Self:
        self._loop = find_asyncio_loop()
        if self._scope is None and self._loop is not None:
            self._host_task = asyncio.current_task(self._loop)
            assert self._host_task is not None
            self._initial_cancelling = self._host_task.cancelling()
            if self._deadline is not None:
                self._deadline_at = self._loop.time() + self._deadline
                self._deadline_handle = self._loop.call_at(self._deadline_at, self._expire)
            return self
        self._scope = self._scope or anyio.CancelScope()
        if self._deadline is not None:
            self._deadline_at = self._scope.deadline = anyio.current_time() + self._deadline
        self._stack = AsyncExitStack()
        self._stack.enter_context(self._scope)
        if self._loop is None:
            self._group = await self._stack.enter_async_context(anyio.create_task_group())
        return self

    def start_listening(self, *, is_draining: bool = False) -> None:
        """Start to listen for a disconnect. Nothing else may call `receive` afterwards.

        The body of the caller's request arrives through the same `receive`. So this starts after
        the body was read. Until then, the code that reads the body notices a disconnect.

        Arguments:
            is_draining: Whether to read the rest of the body slowly, because it is not needed.
        """
        if not self._listener.started:
            self._listener.start(self._loop, self._group, is_draining=is_draining)

    def start_task(self, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Start a function in a task. It must end before this scope does."""
        if self._group is not None:
            self._group.start_soon(function)
        elif self._loop is not None:
            task = self._loop.create_task(function())
            self._tasks |= {task}  # The loop has only a weak reference.

    def poll(self, interval: float, callback: Callable[[], bool]) -> None:
        """Call `callback` every `interval` seconds while it returns True, until the scope ends."""

        async def poll() -> None:
            while callback():  # noqa: ASYNC110  A socket has no event for this.
                await anyio.sleep(interval)

        if self._group is not None:
            self._group.start_soon(poll)
        else:
            self._tick(interval, callback)

    def _tick(self, interval: float, callback: Callable[[], bool]) -> None:
        if callback():
            loop = asyncio.get_running_loop()
            self._poll_handle = loop.call_later(interval, self._tick, interval, callback)

    def count_sent(self, count: int) -> None:
        """Count the bytes that were sent to the caller."""
        self._listener.count_sent(count)

    def raise_if_cancelled(self) -> None:
        """End the exchange if it is cancelled but the cancellation has not been delivered yet.

        anyio does not deliver a cancellation while the task's future is already done, which is
        always the case under load.
        """
        if self.disconnected or self.deadline_passed or (self._scope and self._scope.cancel_called):
            raise CallerDisconnected

    def remaining_time(self, *, at_least: float) -> AbstractContextManager[object]:
        """Limit a block after this scope by the same deadline, but allow `at_least` seconds.

        Raises:
            TimeoutError: If the deadline passes.
        """
        if self._deadline is None:
            return _NO_TIMEOUT
        return anyio.fail_after(max(self._deadline_at - anyio.current_time(), at_least))

    def _expire(self) -> None:
        self.deadline_passed = True
        self._cancel()

    def _cancel(self) -> None:
        if self._scope is not None:
            self._scope.cancel()
        elif self._host_task is not None and not self._cancelled:
            self._cancelled = self._host_task.cancel()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        self._listener.detach()  # A `receive` may turn its own cancellation into a disconnect.
        if self._deadline_handle is not None:
            self._deadline_handle.cancel()
        if self._poll_handle is not None:
            self._poll_handle.cancel()
        if self._group is not None:
            self._group.cancel_scope.cancel()
        try:
            if self._listener.is_running:
                await self._listener.stop()
        finally:  # `Task.cancel()` may interrupt the wait.
            if self._stack is not None and self._scope is not None:
                self.cancelled_caught = bool(await self._stack.__aexit__(exc_type, exc, traceback))
                self.deadline_passed = self._scope.cancel_called and not self.disconnected
            elif self._cancelled:
                self.cancelled_caught = await self._take_back_cancellation(exc)
        return self.cancelled_caught

    async def _take_back_cancellation(self, exc: BaseException | None) -> bool:
        """Undo the `Task.cancel()` of this scope. Return whether it is what ended the block."""
        assert self._host_task is not None
        if self._host_task.uncancel() <= self._initial_cancelling:
            return isinstance(exc, asyncio.CancelledError)
        # Another cancellation was merged with this one. anyio delivers its own again, with the
        # message by which its scope recognises it.
        for _ in range(2):
            await asyncio.sleep(0)
        return False


def find_asyncio_loop() -> asyncio.AbstractEventLoop | None:
    """Return the running loop of asyncio, or None on trio."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None

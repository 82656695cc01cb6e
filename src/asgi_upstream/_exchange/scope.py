"""The watch over an exchange: ends it when its caller has left, or when its deadline passes."""

import asyncio
import contextvars
import math
import threading
import weakref
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager, AsyncExitStack, nullcontext
from types import TracebackType
from typing import Any, Self

import anyio
from anyio.abc import TaskGroup
from starlette.types import Receive

from .downstream import CallerDisconnected, wait_for_disconnect

LISTEN_DELAY = 0.1
"""Seconds, one to two times, until a caller is watched on asyncio. Most exchanges end before."""

DRAIN_INTERVAL = 0.1
"""Seconds between two parts of an upload that are read only to see whether its caller leaves."""

LISTEN_AFTER_BYTES = 1024 * 1024
"""Bytes after which a caller is watched at once: hypercorn keeps what it cannot send any more."""

_NO_TIMEOUT = nullcontext()


class ExchangeScope:
    """Bounds an exchange: ends it when the caller has left, or when its deadline passes.

    Servers tell of a disconnect to whoever waits in `receive`; few fail a `send`, and none while
    nothing is sent. So somebody must wait there, in a task of its own. On asyncio that task starts
    late, for a task costs much, and most exchanges are soon over. On trio it is a child task.

    The body of the caller's request comes through the same `receive`. The watch begins when it has
    gone upstream; until then whoever reads it learns of the disconnect.

    The exchange is ended by a cancel scope, or, where nothing in it is anybody else's, by a plain
    `Task.cancel()`, which costs a fifth (as `asyncio.timeout` does; no shield holds it off).
    """

    disconnected: bool = False
    deadline_passed: bool = False
    cancelled_caught: bool = False  # the exchange was ended before its own end
    _deadline_at: float = math.inf  # the deadline, by the loop's clock
    _listening = False
    _draining = False
    _relayed = 0
    _context: contextvars.Context | None = None  # of who begins
    _loop: asyncio.AbstractEventLoop | None = None  # None on trio
    _host_task: asyncio.Task[Any] | None = None  # to be cancelled, where there is no scope
    _initial_cancelling = 0
    _cancelled = False
    _stack: AsyncExitStack | None = None  # of the scope, and on trio the group in it
    _group: TaskGroup | None = None
    _deadline_handle: asyncio.TimerHandle | None = None
    _poll_handle: asyncio.TimerHandle | None = None
    _listener_task: asyncio.Task[None] | None = None

    def __init__(self, receive: Receive, deadline: float | None, *, plain: bool) -> None:
        self._receive = receive
        self._deadline = deadline
        self._scope = None if plain else anyio.CancelScope()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._loop = running_loop()
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

    @property
    def has_unread_request(self) -> bool:
        """Whether there may be more of the caller's request than was read."""
        return not self._listening or self._draining

    def start_listening(self, *, sparingly: bool = False) -> None:
        """Start to read `receive`, which from here on nobody else may.

        Arguments:
            sparingly: take little of the body that is still to come, for nobody wants it.
        """
        if self._listening:
            return
        self._listening, self._draining = True, sparingly
        if self._group is not None:
            self._group.start_soon(self._listen)
        elif self._loop is not None:
            self._context = contextvars.copy_context()
            _thread_state.clock.add(self, self._loop)

    def poll(self, seconds: float, look: Callable[[], bool]) -> None:
        """Call `look` so often, as long as it says True and the watch is not over."""

        async def repeat() -> None:
            while look():  # noqa: ASYNC110  a socket has no event for this
                await anyio.sleep(seconds)

        def tick() -> None:
            if look():
                self._poll_handle = asyncio.get_running_loop().call_later(seconds, tick)

        if self._group is not None:
            self._group.start_soon(repeat)
        else:
            tick()

    def start_task(self, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Start a function in a task of its own. It must end before this scope does."""
        if self._group is not None:
            self._group.start_soon(function)
        elif self._loop is not None:
            task = self._loop.create_task(function())
            self._tasks.add(task)  # the loop has only a weak reference
            task.add_done_callback(self._tasks.discard)

    def start_listener_task(self) -> None:
        """The exchange goes on for long: wait for the caller's leaving."""
        if self._listener_task is None and self._loop is not None:
            self._listener_task = self._loop.create_task(self._listen(), context=self._context)

    async def _listen(self) -> None:
        if await wait_for_disconnect(self._receive, DRAIN_INTERVAL if self._draining else 0):
            self.disconnected = True
            self._cancel()

    def _expire(self) -> None:
        self.deadline_passed = True
        self._cancel()

    def count_sent(self, count: int) -> None:
        """So many bytes more went to the caller."""
        self._relayed += count
        if self._relayed > LISTEN_AFTER_BYTES and self._listening:
            self.start_listener_task()

    def raise_if_cancelled(self) -> None:
        """End it here and now, where the cancellation has not arrived yet.

        anyio cancels no task whose future is done, as it always is when the event loop is full.
        """
        if self.disconnected or self.deadline_passed or (self._scope and self._scope.cancel_called):
            raise CallerDisconnected

    def goes_on(self, at_least: float) -> AbstractContextManager[object]:
        """Bound what follows the watch by the same deadline, but leave it so many seconds.

        Raises:
            TimeoutError: it passed.
        """
        if self._deadline is None:
            return _NO_TIMEOUT
        return anyio.fail_after(max(self._deadline_at - anyio.current_time(), at_least))

    def _cancel(self) -> None:
        if self._scope is not None:
            self._scope.cancel()
        elif self._host_task is not None and not self._cancelled:
            self._cancelled = self._host_task.cancel()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if self._loop is not None and self._listening:
            _thread_state.clock.discard(self)
        if self._poll_handle is not None:
            self._poll_handle.cancel()
        if self._deadline_handle is not None:
            self._deadline_handle.cancel()
        if self._group is not None:
            self._group.cancel_scope.cancel()
        try:
            if self._listener_task is not None and not self._listener_task.done():
                self._listener_task.cancel()
                with anyio.CancelScope(shield=True):
                    await asyncio.wait([self._listener_task], timeout=1)
        finally:  # also where `task.cancel()` breaks off the wait
            if self._stack is not None and self._scope is not None:
                self.cancelled_caught = bool(await self._stack.__aexit__(kind, exc, traceback))
                self.deadline_passed = self._scope.cancel_called and not self.disconnected
            elif self._cancelled:
                self.cancelled_caught = await self._uncancel(exc)
        return self.cancelled_caught

    async def _uncancel(self, exc: BaseException | None) -> bool:
        """Take back the cancellation of `_end`; True where it is what ended the exchange."""
        assert self._host_task is not None
        late: asyncio.CancelledError | None = None
        if exc is None:  # it may not have arrived yet
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError as now:
                late = now
        if self._host_task.uncancel() > self._initial_cancelling:  # somebody else cancels too
            if late is not None:
                raise late
            return False
        return isinstance(exc, asyncio.CancelledError)


class _ListenerTimer:
    """Starts the watching of exchanges that go on for a while: one timer for all of a loop."""

    def __init__(self) -> None:
        self._current: dict[ExchangeScope, None] = {}
        self._previous: dict[ExchangeScope, None] = {}
        self._ticks = False

    def add(self, watch: ExchangeScope, loop: asyncio.AbstractEventLoop) -> None:
        self._current[watch] = None
        if not self._ticks:
            self._ticks = True
            loop.call_later(LISTEN_DELAY, self._tick, loop, context=contextvars.Context())

    def discard(self, watch: ExchangeScope) -> None:
        if self._current.pop(watch, self) is self:
            self._previous.pop(watch, None)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        due, self._previous, self._current = self._previous, self._current, {}
        for watch in due:
            watch.start_listener_task()
        self._ticks = bool(self._previous)
        if self._ticks:
            loop.call_later(LISTEN_DELAY, self._tick, loop)


class _ThreadState(threading.local):
    """What a thread knows of its event loop."""

    def __init__(self) -> None:
        self.loop: Callable[[], asyncio.AbstractEventLoop | None] = lambda: None
        self.clock = _ListenerTimer()


_thread_state = _ThreadState()


def running_loop() -> asyncio.AbstractEventLoop | None:
    """asyncio's loop in this thread; None on trio.

    Remembered, for asyncio asks the kernel for the process's number each time, up to Python 3.11.
    """
    loop = _thread_state.loop()
    if loop is None or not loop.is_running():
        loop = asyncio._get_running_loop()
        _thread_state.clock = _ListenerTimer()
        _thread_state.loop = (lambda: None) if loop is None else weakref.ref(loop)
    return loop

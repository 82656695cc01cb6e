"""The watch over an exchange: ends it when its caller has left, or when its deadline passes."""

import asyncio
import contextvars
import math
import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, AsyncExitStack, nullcontext
from types import TracebackType
from typing import Any, Self

import anyio
from anyio.abc import TaskGroup
from starlette.types import Receive

from .caller import CallerLeft, leaves

WATCH_AFTER = 0.1
"""Seconds, one to two times, until a caller is watched on asyncio. Most exchanges end before."""

SPARINGLY = 0.1
"""Seconds between two parts of an upload that are read only to see whether its caller leaves."""

MUCH = 1024 * 1024
"""Bytes after which a caller is watched at once: hypercorn keeps what it cannot send any more."""

_UNBOUND = nullcontext()


class Watch:
    """Bounds an exchange: ends it when the caller has left, or when its deadline passes.

    Servers tell of a disconnect to whoever waits in `receive`; few fail a `send`, and none while
    nothing is sent. So somebody must wait there, in a task of its own. On asyncio that task starts
    late, for a task costs much, and most exchanges are soon over. On trio it is a child task.

    The body of the caller's request comes through the same `receive`. The watch begins when it has
    gone upstream; until then whoever reads it learns of the disconnect.

    The exchange is ended by a cancel scope, or, where nothing in it is anybody else's, by a plain
    `Task.cancel()`, which costs a fifth (as `asyncio.timeout` does; no shield holds it off).
    """

    left: bool = False
    expired: bool = False
    cut: bool = False  # the exchange was ended before its own end
    _until: float = math.inf  # the deadline, by the loop's clock
    _begun = False
    _sparingly = False
    _relayed = 0
    _context: contextvars.Context | None = None  # of who begins
    _loop: asyncio.AbstractEventLoop | None = None  # None on trio
    _host: asyncio.Task[Any] | None = None  # to be cancelled, where there is no scope
    _cancelling = 0
    _cancelled = False
    _stack: AsyncExitStack | None = None  # of the scope, and on trio the group in it
    _group: TaskGroup | None = None
    _too_late: asyncio.TimerHandle | None = None
    _ticks: asyncio.TimerHandle | None = None
    _task: asyncio.Task[None] | None = None

    def __init__(self, receive: Receive, deadline: float | None, *, plain: bool) -> None:
        self._receive = receive
        self._deadline = deadline
        self._scope = None if plain else anyio.CancelScope()

    async def __aenter__(self) -> Self:
        self._loop = running_loop()
        if self._scope is None and self._loop is not None:
            self._host = asyncio.current_task(self._loop)
            assert self._host is not None
            self._cancelling = self._host.cancelling()
            if self._deadline is not None:
                self._until = self._loop.time() + self._deadline
                self._too_late = self._loop.call_at(self._until, self._expire)
            return self
        self._scope = self._scope or anyio.CancelScope()
        if self._deadline is not None:
            self._until = self._scope.deadline = anyio.current_time() + self._deadline
        self._stack = AsyncExitStack()
        self._stack.enter_context(self._scope)
        if self._loop is None:
            self._group = await self._stack.enter_async_context(anyio.create_task_group())
        return self

    @property
    def leaves_unread(self) -> bool:
        """Whether there may be more of the caller's request than was read."""
        return not self._begun or self._sparingly

    def begin(self, *, sparingly: bool = False) -> None:
        """Start to read `receive`, which from here on nobody else may.

        Arguments:
            sparingly: take little of the body that is still to come, for nobody wants it.
        """
        if self._begun:
            return
        self._begun, self._sparingly = True, sparingly
        if self._group is not None:
            self._group.start_soon(self._listen)
        elif self._loop is not None:
            self._context = contextvars.copy_context()
            _here.clock.add(self, self._loop)

    def every(self, seconds: float, look: Callable[[], bool]) -> None:
        """Call `look` so often, as long as it says True and the watch is not over."""

        async def repeat() -> None:
            while look():  # noqa: ASYNC110  a socket has no event for this
                await anyio.sleep(seconds)

        def tick() -> None:
            if look():
                self._ticks = asyncio.get_running_loop().call_later(seconds, tick)

        if self._group is not None:
            self._group.start_soon(repeat)
        else:
            tick()

    def spawn(self) -> None:
        """The exchange goes on for long: wait for the caller's leaving."""
        if self._task is None and self._loop is not None:
            self._task = self._loop.create_task(self._listen(), context=self._context)

    async def _listen(self) -> None:
        if await leaves(self._receive, SPARINGLY if self._sparingly else 0):
            self.left = True
            self._end()

    def _expire(self) -> None:
        self.expired = True
        self._end()

    def relayed(self, count: int) -> None:
        """So many bytes more went to the caller."""
        self._relayed += count
        if self._relayed > MUCH and self._begun:
            self.spawn()

    def check(self) -> None:
        """End it here and now, where the cancellation has not arrived yet.

        anyio cancels no task whose future is done, as it always is when the event loop is full.
        """
        if self.left or self.expired or (self._scope and self._scope.cancel_called):
            raise CallerLeft

    def goes_on(self, at_least: float) -> AbstractContextManager[object]:
        """Bound what follows the watch by the same deadline, but leave it so many seconds.

        Raises:
            TimeoutError: it passed.
        """
        if self._deadline is None:
            return _UNBOUND
        return anyio.fail_after(max(self._until - anyio.current_time(), at_least))

    def _end(self) -> None:
        if self._scope is not None:
            self._scope.cancel()
        elif self._host is not None and not self._cancelled:
            self._cancelled = self._host.cancel()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if self._loop is not None and self._begun:
            _here.clock.discard(self)
        if self._ticks is not None:
            self._ticks.cancel()
        if self._too_late is not None:
            self._too_late.cancel()
        if self._group is not None:
            self._group.cancel_scope.cancel()
        try:
            if self._task is not None and not self._task.done():
                self._task.cancel()
                with anyio.CancelScope(shield=True):
                    await asyncio.wait([self._task], timeout=1)
        finally:  # also where `task.cancel()` breaks off the wait
            if self._stack is not None and self._scope is not None:
                self.cut = bool(await self._stack.__aexit__(kind, exc, traceback))
                self.expired = self._scope.cancel_called and not self.left
            elif self._cancelled:
                self.cut = await self._absorb(exc)
        return self.cut

    async def _absorb(self, exc: BaseException | None) -> bool:
        """Take back the cancellation of `_end`; True where it is what ended the exchange."""
        assert self._host is not None
        late: asyncio.CancelledError | None = None
        if exc is None:  # it may not have arrived yet
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError as now:
                late = now
        if self._host.uncancel() > self._cancelling:  # somebody else cancels too
            if late is not None:
                raise late
            return False
        return isinstance(exc, asyncio.CancelledError)


class _Clock:
    """Starts the watching of exchanges that go on for a while: one timer for all of a loop."""

    def __init__(self) -> None:
        self._young: dict[Watch, None] = {}
        self._old: dict[Watch, None] = {}
        self._ticks = False

    def add(self, watch: Watch, loop: asyncio.AbstractEventLoop) -> None:
        self._young[watch] = None
        if not self._ticks:
            self._ticks = True
            loop.call_later(WATCH_AFTER, self._tick, loop, context=contextvars.Context())

    def discard(self, watch: Watch) -> None:
        if self._young.pop(watch, self) is self:
            self._old.pop(watch, None)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        due, self._old, self._young = self._old, self._young, {}
        for watch in due:
            watch.spawn()
        self._ticks = bool(self._old)
        if self._ticks:
            loop.call_later(WATCH_AFTER, self._tick, loop)


class _Here(threading.local):
    """What a thread knows of its event loop."""

    def __init__(self) -> None:
        self.loop: Callable[[], asyncio.AbstractEventLoop | None] = lambda: None
        self.clock = _Clock()


_here = _Here()


def running_loop() -> asyncio.AbstractEventLoop | None:
    """asyncio's loop in this thread; None on trio.

    Remembered, for asyncio asks the kernel for the process's number each time, up to Python 3.11.
    """
    loop = _here.loop()
    if loop is None or not loop.is_running():
        loop = asyncio._get_running_loop()
        _here.clock = _Clock()
        _here.loop = (lambda: None) if loop is None else weakref.ref(loop)
    return loop

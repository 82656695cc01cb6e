"""Listens for the caller's disconnect.

ASGI reports a disconnect only to a task that awaits `receive()`. Few servers let a `send` fail, and
none does so while nothing is sent. So a separate task listens.
"""

import asyncio
import contextvars
import weakref
from collections.abc import Callable

import anyio
from anyio.abc import TaskGroup
from starlette.types import Receive

from .._logging import logger

LISTEN_DELAY = 0.1
"""On asyncio, listening starts one to two times this long into an exchange. Most end sooner."""

DRAIN_INTERVAL = 0.1
"""Seconds between two chunks of a refused upload, which is read only to notice a disconnect."""

LISTEN_AFTER_BYTES = 1024 * 1024
"""Bytes sent after which listening starts at once. hypercorn buffers everything it cannot send."""


class DisconnectListener:
    """Calls `on_disconnect` when the caller disconnects.

    On trio it listens in a child task from the start. On asyncio it starts a task after a delay,
    because a task is expensive and most exchanges are short.

    Arguments:
        receive: The caller's ASGI `receive`. Nothing else may call it after `start`.
        on_disconnect: Called once.
    """

    started: bool = False
    is_draining: bool = False
    disconnected: bool = False
    _sent = 0
    _context: contextvars.Context | None = None
    _loop: asyncio.AbstractEventLoop | None = None
    _timer: "_ListenerTimer | None" = None
    _task: asyncio.Task[None] | None = None

    def __init__(self, receive: Receive, on_disconnect: Callable[[], None]) -> None:
        self._receive = receive
        self._on_disconnect = on_disconnect

    def start(
        self,
        loop: asyncio.AbstractEventLoop | None,
        group: TaskGroup | None,
        *,
        is_draining: bool,
    ) -> None:
        """Start to listen, in a task of `loop` or in `group`.

        Arguments:
            loop: The event loop on asyncio.
            group: The task group on trio.
            is_draining: Whether to read the body slowly, because it is not needed any more.
        """
        self.started, self.is_draining = True, is_draining
        if group is not None:
            group.start_soon(self._listen)
        elif loop is not None:
            self._loop, self._context = loop, contextvars.copy_context()
            self._timer = _get_timer(loop)
            self._timer.add(self)

    def start_task(self) -> None:
        """Listen now, because the exchange takes long."""
        if self._task is None and self._loop is not None:
            self._task = self._loop.create_task(self._listen(), context=self._context)

    def count_sent(self, count: int) -> None:
        """Count the bytes that were sent to the caller."""
        self._sent += count
        if self._sent > LISTEN_AFTER_BYTES and self.started:
            self.start_task()

    def detach(self) -> None:
        """Do not start the task or call `on_disconnect` from now on.

        Its reference to the owner of this object would be a cycle.
        """
        self._on_disconnect = _ignore
        if self._timer is not None:
            self._timer.discard(self)

    @property
    def is_running(self) -> bool:
        """Whether the task is running. Then it must be stopped."""
        return self._task is not None and not self._task.done()

    async def stop(self) -> None:
        """End the task and wait for its end."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.wait([self._task], timeout=1)

    async def _listen(self) -> None:
        pause = DRAIN_INTERVAL if self.is_draining else 0
        if await wait_for_disconnect(self._receive, pause):
            self.disconnected = True
            self._on_disconnect()


def _ignore() -> None:
    pass


async def wait_for_disconnect(receive: Receive, pause: float = 0) -> bool:
    """Discard incoming messages until the caller disconnects.

    Arguments:
        receive: The caller's ASGI `receive`.
        pause: Seconds to wait between two messages.

    Returns:
        False if the server cannot report a disconnect.
    """
    more = True
    try:
        while not (message := await receive())["type"].endswith(".disconnect"):
            if not more:
                return False  # The server repeats this message and will report no disconnect.
            more = message.get("more_body", message["type"] != "http.request")
            if pause:
                await anyio.sleep(pause)
    except OSError:
        pass  # The connection is gone.
    except Exception:
        logger.debug("cannot listen for the caller's disconnect", exc_info=True)
        return False
    return True


class _ListenerTimer:
    """Starts the tasks of listeners after a delay. One timer serves all listeners of a loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop: weakref.ref[asyncio.AbstractEventLoop] = weakref.ref(loop)
        self._current: dict[DisconnectListener, None] = {}
        self._previous: dict[DisconnectListener, None] = {}
        self._is_running = False

    def add(self, listener: DisconnectListener) -> None:
        self._current[listener] = None
        if not self._is_running:
            self._is_running = True
            self._schedule()

    def discard(self, listener: DisconnectListener) -> None:
        if self._current.pop(listener, self) is self:
            self._previous.pop(listener, None)

    def _tick(self) -> None:
        due, self._previous, self._current = self._previous, self._current, {}
        for listener in due:
            listener.start_task()
        self._is_running = bool(self._previous)
        if self._is_running:
            self._schedule()

    def _schedule(self) -> None:
        if loop := self.loop():
            loop.call_later(LISTEN_DELAY, self._tick, context=contextvars.Context())


_last_timer: _ListenerTimer | None = None
_timers: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _ListenerTimer] = (
    weakref.WeakKeyDictionary()
)


def _get_timer(loop: asyncio.AbstractEventLoop) -> _ListenerTimer:
    global _last_timer
    timer = _last_timer
    if timer is None or timer.loop() is not loop:
        timer = _timers.get(loop)
        if timer is None:
            timer = _timers[loop] = _ListenerTimer(loop)
        _last_timer = timer
    return timer

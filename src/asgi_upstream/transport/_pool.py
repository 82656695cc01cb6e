"""The connection pool: it hands out idle connections, starts new ones and queues waiters."""

import asyncio
import functools
import math
from collections import Counter
from collections.abc import Coroutine
from itertools import count
from typing import Protocol, cast

import httpx

from .._httpx.interfaces import HTTPXModule
from ._connection import ConnectionOwner, HTTP11Connection
from ._idle import IdleConnections
from ._pool_state import Origin, PoolState, add_up
from ._waiters import ConnectAttempt, Waiter, WaitQueue


class SupportsConnect(Protocol):
    """The part of a `Connector` that the pool uses."""

    def connect(
        self, origin: Origin, owner: ConnectionOwner, timeout: float | None
    ) -> Coroutine[None, None, HTTP11Connection]: ...


class Pool:
    """Shares connections among requests, in order of arrival over all origins.

    A request takes the idle connection that was used last. Otherwise it waits for a new connection
    or for one that is released, whichever comes first. Each connect belongs to the waiter that
    caused it. If that waiter gets another connection or is cancelled, the connect is spare: its
    connection goes to the next request, and its failure is dropped.
    """

    def __init__(
        self,
        connector: SupportsConnect,
        limits: httpx.Limits,
        library: HTTPXModule,
        max_connection_age: float | None = None,
    ) -> None:
        self._connector = connector
        self._library = library
        self._max_connections = _or_infinite(limits.max_connections)
        self._open: dict[HTTP11Connection, Origin] = {}
        self._idle = IdleConnections(
            _or_infinite(limits.max_keepalive_connections),
            limits.keepalive_expiry,
            max_connection_age,
        )
        self._waiters = WaitQueue()
        self._connecting: set[ConnectAttempt] = set()
        self._spare: dict[ConnectAttempt, None] = {}
        self._sequence = count()
        self._loop = cast(asyncio.AbstractEventLoop, None)  # set by the first `acquire`

    def pop_idle(self, origin: Origin) -> HTTP11Connection | None:
        """Take the idle connection that was used last, if there is one that can be used."""
        return self._idle.pop(origin)

    async def acquire(
        self, origin: Origin, timeout: float | None, connect_timeout: float | None
    ) -> HTTP11Connection:
        """Wait for a new connection or for one that is released.

        Raises:
            httpx.PoolTimeout: If no place in the pool became free in `timeout` seconds.
            httpx.ConnectError: If the connect failed.
            httpx.ConnectTimeout: If the connect took longer than `connect_timeout` seconds.
        """
        while True:
            connection = await self._wait(origin, timeout, connect_timeout)
            # It may have closed, or received data, since it was released.
            if not connection.request_count or connection.is_reusable():
                return connection
            connection.close()

    async def _wait(
        self, origin: Origin, timeout: float | None, connect_timeout: float | None
    ) -> HTTP11Connection:
        loop = self._loop = asyncio.get_running_loop()
        waiter = Waiter(origin, next(self._sequence), loop.create_future(), connect_timeout)
        self._waiters.add(waiter)
        self._assign_slots()
        timer = None
        if timeout is not None and waiter.attempt is None:
            timer = loop.call_later(timeout, self._on_pool_timeout, waiter)
        try:
            return await waiter.connection
        except asyncio.CancelledError:
            if not waiter.connection.cancelled() and waiter.connection.exception() is None:
                connection = waiter.connection.result()  # assigned in the same loop iteration
                if not connection.closed:
                    self.release(connection)
            raise
        finally:
            if timer is not None:
                timer.cancel()
            self._remove_waiter(waiter)

    def release(self, connection: HTTP11Connection) -> None:
        """Give the connection to the first waiter, keep it idle, or close it."""
        origin = self._open[connection]
        now = connection.loop.time()
        limit = self._idle.find_limit(connection, now)
        if limit <= now and connection.request_count:
            connection.close()
            return
        waiter = other = None
        if self._waiters:
            waiter, other = self._waiters.first(origin), self._waiters.first_without_connect()
        if other and other.origin != origin and (not waiter or other.sequence < waiter.sequence):
            connection.close()  # `discard` gives its slot to the other origin
        elif waiter:
            self._remove_waiter(waiter)
            waiter.connection.set_result(connection)
        elif not self._idle.add(connection, origin, now, limit):
            connection.close()

    def discard(self, connection: HTTP11Connection) -> None:
        """Forget a connection that has closed, whatever its state was."""
        origin = self._open.pop(connection, None)
        if origin is not None:
            self._idle.forget(connection, origin)
            self._assign_slots()

    def close(self) -> None:
        """Close every connection. Requests that wait for one get an error."""
        self._idle.stop_timer()
        for attempt in self._connecting:
            attempt.pool_is_closed, attempt.waiter = True, None
            attempt.task.cancel()
        self._spare.clear()
        for waiter in self._waiters:
            waiter.attempt = None
            self._fail_waiter(waiter, self._library.ConnectError("the client was closed"))
        for connection in list(self._open):
            connection.fail(self._library.CloseError("the client was closed"))

    def state(self) -> PoolState:
        """Count the connections and the waiting requests."""
        connecting = Counter(attempt.origin for attempt in self._connecting)
        opened = Counter(self._open.values())
        idle, waiting = self._idle.count(), self._waiters.count()
        return add_up(
            {
                origin: PoolState(
                    opened[origin], idle.get(origin, 0), connecting[origin], waiting.get(origin, 0)
                )
                for origin in {*opened, *connecting, *waiting}
            }
        )

    def _assign_slots(self) -> None:
        """Start connects for waiters, in order of arrival, as far as the limit allows."""
        while waiter := self._waiters.first_without_connect():
            if len(self._open) + len(self._connecting) < self._max_connections:
                self._start_connect(waiter)
            elif (oldest := self._idle.oldest) is not None:
                oldest.close()  # `discard` calls this method again
            else:
                self._cancel_spare_connect(waiter.origin)
                return

    def _start_connect(self, waiter: Waiter) -> None:
        connecting = self._connector.connect(waiter.origin, self, waiter.connect_timeout)
        attempt = ConnectAttempt(waiter.origin, waiter, self._loop.create_task(connecting))
        self._connecting.add(attempt)
        self._waiters.start_connect(waiter, attempt)
        attempt.task.add_done_callback(functools.partial(self._on_connect_done, attempt))

    def _on_connect_done(
        self, attempt: ConnectAttempt, task: asyncio.Task[HTTP11Connection]
    ) -> None:
        """Hand the new connection to the first waiter, or the error to the connect's own waiter."""
        self._connecting.discard(attempt)
        self._spare.pop(attempt, None)
        waiter = attempt.waiter
        if waiter is not None:
            waiter.attempt = None
        try:
            connection = task.result()
            if connection.closed:
                raise self._library.RemoteProtocolError(
                    "Server disconnected without sending a response."
                )
        except BaseException as exc:
            if waiter is not None:
                self._fail_waiter(waiter, exc)
            self._assign_slots()
            return
        self._open[connection] = attempt.origin
        if attempt.pool_is_closed:
            connection.close()
            return
        self._idle.register(connection)
        if waiter is not None:
            self._pass_on_connect(waiter)
        self.release(connection)

    def _pass_on_connect(self, waiter: Waiter) -> None:
        """Give `waiter` the connect of the first waiter, which gets the connection instead."""
        first = self._waiters.first(waiter.origin)
        if first is None or first is waiter or waiter.connection.done() or first.attempt is None:
            return
        waiter.attempt, first.attempt = first.attempt, None
        waiter.attempt.waiter = waiter

    def _cancel_spare_connect(self, needed_by: Origin) -> None:
        """Cancel a spare connect to another origin. Its slot is free when the task has ended."""
        for attempt in self._spare:
            if attempt.origin != needed_by:
                del self._spare[attempt]
                attempt.task.cancel()
                return

    def _fail_waiter(self, waiter: Waiter, exc: BaseException) -> None:
        self._remove_waiter(waiter)
        if not waiter.connection.done():
            waiter.connection.set_exception(exc)

    def _on_pool_timeout(self, waiter: Waiter) -> None:
        if waiter.attempt is None and not waiter.connection.done():
            waiter.connection.set_exception(self._library.PoolTimeout(""))

    def _remove_waiter(self, waiter: Waiter) -> None:
        """Remove a waiter. Its connect, if one is in progress, becomes spare."""
        self._waiters.remove(waiter)
        attempt, waiter.attempt = waiter.attempt, None
        if attempt is not None:
            attempt.waiter = None
            self._spare[attempt] = None
            self._assign_slots()  # another origin may need the slot


def _or_infinite(limit: int | None) -> float:
    return math.inf if limit is None else limit

"""The connection pool: it hands out idle connections, starts new ones and queues waiters."""

import asyncio
import functools
import math
import random
from collections import Counter, OrderedDict
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import cast

import httpx

from .._httpx.flavors import HTTPXModule
from ._connection import HTTP11Connection

MAX_AGE_JITTER = 0.1
"""The part of `max_connection_age` that is drawn at random, so that not all close at once."""

Origin = tuple[bytes, bytes, int, str | None]  # scheme, host, port, TLS server name if it differs
Connect = Callable[[Origin, float | None], Coroutine[None, None, HTTP11Connection]]
ConnectTask = asyncio.Task[HTTP11Connection]


@dataclass(slots=True, eq=False)
class Waiter:
    """A request that waits for a connection."""

    origin: Origin
    sequence: int  # in order of arrival, over all origins
    connection: asyncio.Future[HTTP11Connection]
    connect_timeout: float | None
    connect: ConnectTask | None = None  # the attempt whose failure is this waiter's


@dataclass(slots=True, eq=False)
class OriginState:
    """The pool's state for one origin. Dicts keep the order and delete in constant time."""

    idle: dict[HTTP11Connection, None] = field(default_factory=dict[HTTP11Connection, None])
    # An OrderedDict, because a plain dict gets slow if entries leave from its front.
    waiters: OrderedDict[Waiter, None] = field(default_factory=OrderedDict[Waiter, None])
    connecting: int = 0


@dataclass(frozen=True, slots=True)
class PoolState:
    """The number of connections and waiting requests, in total or for one origin.

    Attributes:
        open: Open connections, in use or idle.
        idle: Open connections that are not in use.
        connecting: Connections that are being opened.
        waiting: Requests that wait for a connection, including those with a connect in progress.
        origins: The same numbers for each origin, by "http://host:port".
    """

    open: int
    idle: int
    connecting: int
    waiting: int
    origins: Mapping[str, "PoolState"] = field(default_factory=dict[str, "PoolState"])


class Pool:
    """Shares connections among requests, in order of arrival over all origins.

    A request takes the idle connection that was used last. Otherwise it waits for a new connection
    or for one that is released, whichever comes first. Each connect belongs to the waiter that
    caused it. If that waiter gets another connection or is cancelled, the connect is spare: its
    connection goes to the next request, and its failure is dropped.
    """

    def __init__(
        self,
        connect: Connect,
        limits: httpx.Limits,
        library: HTTPXModule = httpx,
        max_connection_age: float | None = None,
    ) -> None:
        self._connect = connect
        self._library = library
        self._max_connections = _or_infinite(limits.max_connections)
        self._max_idle = _or_infinite(limits.max_keepalive_connections)
        self._expiry = limits.keepalive_expiry
        self._max_age = max_connection_age
        self._groups: dict[Origin, OriginState] = {}
        self._open: dict[HTTP11Connection, Origin] = {}
        self._retire_at: dict[HTTP11Connection, float] = {}
        self._idle_since: dict[HTTP11Connection, float] = {}
        self._waiting_for_slot: OrderedDict[Waiter, None] = OrderedDict()
        self._connecting: dict[ConnectTask, Waiter | None] = {}  # None for a spare connect
        self._spare_connects: dict[ConnectTask, Origin] = {}
        self._size = 0  # connections that are open or being opened
        self._sequence = count()
        self._timer: asyncio.TimerHandle | None = None
        self._loop = cast(asyncio.AbstractEventLoop, None)  # set by the first `acquire`

    def pop_idle(self, origin: Origin) -> HTTP11Connection | None:
        """Take the idle connection that was used last, if there is one that can be used.

        The event loop may have been busy, so the timer and the socket's events may be late.
        """
        while (group := self._groups.get(origin)) is not None and group.idle:
            connection, _ = group.idle.popitem()
            since = self._idle_since.pop(connection)
            expiry = self._idle_limit(connection)
            expired = expiry is not None and since + expiry <= self._loop.time()
            if not expired and connection.is_reusable():
                return connection
            connection.close()
        return None

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
        group = self._group(origin)
        loop = self._loop = asyncio.get_running_loop()
        waiter = Waiter(origin, next(self._sequence), loop.create_future(), connect_timeout)
        group.waiters[waiter] = self._waiting_for_slot[waiter] = None
        self._assign_slots()
        timer = None
        if timeout is not None and waiter.connect is None:
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
        now = self._loop.time()
        if connection.request_count and self._must_retire(connection, now):
            connection.close()
            return
        group = self._group(origin)
        waiter = _first(group.waiters) if group.waiters else None
        other = _first(self._waiting_for_slot) if self._waiting_for_slot else None
        if other and other.origin != origin and (not waiter or other.sequence < waiter.sequence):
            connection.close()  # `discard` gives its slot to the other origin
        elif waiter:
            self._remove_waiter(waiter)
            waiter.connection.set_result(connection)
        elif len(self._idle_since) >= self._max_idle:
            connection.close()
        else:
            group.idle[connection] = None
            self._idle_since[connection] = now
            if self._timer is None and self._expiry is not None:
                self._timer = self._loop.call_later(self._expiry, self._expire)

    def discard(self, connection: HTTP11Connection) -> None:
        """Forget a connection that has closed, whatever its state was."""
        origin = self._open.pop(connection, None)
        if origin is None:
            return
        self._size -= 1
        self._retire_at.pop(connection, None)
        if self._idle_since.pop(connection, None) is not None:
            del self._groups[origin].idle[connection]
        self._drop_if_empty(origin)
        self._assign_slots()

    def close(self) -> None:
        """Close every connection. Requests that wait for one get an error."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for task in self._connecting:
            task.cancel()
        self._connecting.clear()
        self._spare_connects.clear()
        for group in list(self._groups.values()):
            for waiter in list(group.waiters):
                waiter.connect = None
                self._fail_waiter(waiter, self._library.ConnectError("the client was closed"))
        for connection in list(self._open):
            connection.fail(self._library.CloseError("the client was closed"))

    def state(self) -> PoolState:
        """Count the connections and the waiting requests."""
        open_by_origin = Counter(self._open.values())
        origins: dict[Origin, PoolState] = {}
        for origin in {*self._groups, *open_by_origin}:
            group = self._groups.get(origin, OriginState())
            origins[origin] = PoolState(
                open_by_origin[origin], len(group.idle), group.connecting, len(group.waiters)
            )
        return PoolState(
            len(self._open),
            len(self._idle_since),
            self._size - len(self._open),
            sum(state.waiting for state in origins.values()),
            _state_by_url(origins),
        )

    def _idle_limit(self, connection: HTTP11Connection) -> float | None:
        """Return for how many seconds a connection may be idle. None means without limit."""
        if (announced := connection.keep_alive_timeout) is None:
            return self._expiry
        # One second earlier than the upstream closes it, for the request's way there.
        return announced - 1 if self._expiry is None else min(announced - 1, self._expiry)

    def _must_retire(self, connection: HTTP11Connection, now: float) -> bool:
        """Whether a used connection must close now, by its age or because none may be reused."""
        limit = self._idle_limit(connection)
        too_old = self._max_age is not None and now >= self._retire_at.get(connection, math.inf)
        return too_old or (limit is not None and limit <= 0)

    def _assign_slots(self) -> None:
        """Start connects for waiters, in order of arrival, as far as the limit allows."""
        while waiter := _first(self._waiting_for_slot):
            if self._size >= self._max_connections:
                oldest = next(iter(self._idle_since), None)
                if oldest is None:
                    self._cancel_spare_connect(waiter.origin)
                    return
                oldest.close()  # `discard` calls this method again
                continue
            del self._waiting_for_slot[waiter]
            self._size += 1
            self._group(waiter.origin).connecting += 1
            connecting = self._connect(waiter.origin, waiter.connect_timeout)
            waiter.connect = self._loop.create_task(connecting)
            self._connecting[waiter.connect] = waiter
            on_done = functools.partial(self._on_connect_done, waiter.origin)
            waiter.connect.add_done_callback(on_done)

    def _on_connect_done(self, origin: Origin, task: ConnectTask) -> None:
        """Hand the new connection to the first waiter, or the error to the connect's own waiter."""
        pool_was_closed = task not in self._connecting
        waiter = self._connecting.pop(task, None)
        self._spare_connects.pop(task, None)
        self._groups[origin].connecting -= 1
        try:
            connection = task.result()
            if connection.closed:
                raise self._library.RemoteProtocolError(
                    "Server disconnected without sending a response."
                )
        except BaseException as exc:
            self._size -= 1
            if waiter is not None:
                waiter.connect = None
                self._fail_waiter(waiter, exc)
            self._drop_if_empty(origin)
            self._assign_slots()
            return
        self._open[connection] = origin
        if self._max_age is not None:
            age = self._max_age * (1 - MAX_AGE_JITTER * random.random())
            self._retire_at[connection] = self._loop.time() + age
        if pool_was_closed:
            connection.close()
            return
        if waiter is not None:
            waiter.connect = None
            self._pass_on_connect(origin, waiter)
        self.release(connection)

    def _pass_on_connect(self, origin: Origin, waiter: Waiter) -> None:
        """Give `waiter` the connect of the first waiter, which gets the connection instead."""
        first = _first(self._groups[origin].waiters)
        if first is None or first is waiter or waiter.connection.done() or first.connect is None:
            return
        waiter.connect, first.connect = first.connect, None
        self._connecting[waiter.connect] = waiter

    def _cancel_spare_connect(self, needed_by: Origin) -> None:
        """Cancel a spare connect to another origin. Its slot is free when the task has ended."""
        for task, origin in self._spare_connects.items():
            if origin != needed_by:
                del self._spare_connects[task]
                task.cancel()
                return

    def _fail_waiter(self, waiter: Waiter, exc: BaseException) -> None:
        self._remove_waiter(waiter)
        if not waiter.connection.done():
            waiter.connection.set_exception(exc)

    def _on_pool_timeout(self, waiter: Waiter) -> None:
        if waiter.connect is None and not waiter.connection.done():
            waiter.connection.set_exception(self._library.PoolTimeout(""))

    def _expire(self) -> None:
        """Close the connections that have been idle for too long. They are in order of time."""
        self._timer = None
        assert self._expiry is not None
        for connection, since in list(self._idle_since.items()):
            if since + self._expiry > self._loop.time():
                self._timer = self._loop.call_at(since + self._expiry, self._expire)
                return
            connection.close()

    def _group(self, origin: Origin) -> OriginState:
        group = self._groups.get(origin)
        if group is None:
            group = self._groups[origin] = OriginState()
        return group

    def _remove_waiter(self, waiter: Waiter) -> None:
        """Remove a waiter. Its connect, if one is in progress, becomes spare."""
        self._waiting_for_slot.pop(waiter, None)
        if group := self._groups.get(waiter.origin):
            group.waiters.pop(waiter, None)
            self._drop_if_empty(waiter.origin)
        if waiter.connect is not None:
            self._connecting[waiter.connect] = None
            self._spare_connects[waiter.connect] = waiter.origin
            waiter.connect = None
            if self._waiting_for_slot:
                self._assign_slots()  # another origin may need the slot

    def _drop_if_empty(self, origin: Origin) -> None:
        group = self._groups.get(origin)
        if group is not None and not (group.idle or group.waiters or group.connecting):
            del self._groups[origin]


def _or_infinite(limit: int | None) -> float:
    return math.inf if limit is None else limit


def _state_by_url(origins: Mapping[Origin, PoolState]) -> Mapping[str, PoolState]:
    """Key the states by URL. Origins that differ only in the TLS server name are added up."""
    states: dict[str, PoolState] = {}
    for (scheme, raw_host, port, _), state in origins.items():
        host = raw_host.decode()
        url = f"{scheme.decode()}://{f'[{host}]' if ':' in host else host}:{port}"
        same_url = states.get(url, PoolState(0, 0, 0, 0))
        states[url] = PoolState(
            state.open + same_url.open,
            state.idle + same_url.idle,
            state.connecting + same_url.connecting,
            state.waiting + same_url.waiting,
        )
    return states


def _first(waiters: Iterable[Waiter]) -> Waiter | None:
    """Return the first waiter that still waits."""
    return next((waiter for waiter in waiters if not waiter.connection.done()), None)

"""Which connections there are, who has them and who waits for one.

Every operation is O(1). Nothing in here awaits but `wait` and the tasks that connect.
"""

import asyncio
import functools
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count, islice, takewhile
from typing import cast

import httpx

from .._httpx.flavors import HTTPXModule
from ._connection import HTTP11Connection

Origin = tuple[bytes, bytes, int, str | None]  # scheme, host, port, name to ask for in TLS
Connect = Callable[[Origin, float | None], Coroutine[None, None, HTTP11Connection]]


@dataclass(slots=True, eq=False)
class Waiter:
    origin: Origin
    sequence: int  # in the order of their coming
    connection: asyncio.Future[HTTP11Connection]
    connect_timeout: float | None
    has_slot: bool = False  # a connection is being made for it, or for who came before it


@dataclass(slots=True, eq=False)
class OriginState:
    """What there is to one origin. Dicts, for these keep an order and forget one at no cost."""

    idle: dict[HTTP11Connection, None] = field(default_factory=dict[HTTP11Connection, None])
    # Ordered, for a plain dict looks at each that has left from its front.
    waiters: OrderedDict[Waiter, None] = field(default_factory=OrderedDict[Waiter, None])
    connecting: int = 0


@dataclass(frozen=True, slots=True)
class PoolState:
    """How many connections there are and what they do, in all or to one origin.

    Attributes:
        open: connections that are there, those under an exchange and the idle ones.
        idle: those of them that wait for the next exchange.
        connecting: connections that are being made.
        waiting: requests that wait for a connection, those for whom one is being made included.
        origins: the same for each origin, by "http://host:port".
    """

    open: int
    idle: int
    connecting: int
    waiting: int
    origins: Mapping[str, "PoolState"] = field(default_factory=dict[str, "PoolState"])


class Pool:
    def __init__(
        self, connect: Connect, limits: httpx.Limits, library: HTTPXModule = httpx
    ) -> None:
        self._connect = connect
        self._library = library
        self._max_connections = (
            math.inf if limits.max_connections is None else limits.max_connections
        )
        most_idle = limits.max_keepalive_connections
        self._max_idle = math.inf if most_idle is None else most_idle
        self._expiry = limits.keepalive_expiry
        self._groups: dict[Origin, OriginState] = {}
        self._open: dict[HTTP11Connection, Origin] = {}
        self._idle_since: dict[HTTP11Connection, float] = {}
        self._waiting_for_slot: OrderedDict[Waiter, None] = OrderedDict()
        self._connecting: dict[asyncio.Task[HTTP11Connection], Origin] = {}
        self._size = 0  # open, or being made
        self._numbers = count()
        self._timer: asyncio.TimerHandle | None = None
        self._loop = cast(asyncio.AbstractEventLoop, None)  # that of the first `wait`

    def pop_idle(self, origin: Origin) -> HTTP11Connection | None:
        """An idle connection, the one that was used last."""
        group = self._groups.get(origin)
        if group is None or not group.idle:
            return None
        connection, _ = group.idle.popitem()
        del self._idle_since[connection]
        return connection

    async def acquire(
        self, origin: Origin, timeout: float | None, connect_timeout: float | None
    ) -> HTTP11Connection:
        """A connection that is made, or that somebody gives back.

        Raises:
            httpx.PoolTimeout, httpx.ConnectError, httpx.ConnectTimeout
        """
        group = self._group(origin)
        loop = self._loop = asyncio.get_running_loop()
        waiter = Waiter(origin, next(self._numbers), loop.create_future(), connect_timeout)
        group.waiters[waiter] = self._waiting_for_slot[waiter] = None
        self._assign_slots()
        timer = None
        if timeout is not None and not waiter.has_slot:
            timer = loop.call_later(timeout, self._on_pool_timeout, waiter)
        try:
            return await waiter.connection
        except asyncio.CancelledError:
            if not waiter.connection.cancelled() and waiter.connection.exception() is None:
                connection = waiter.connection.result()  # it came too late
                if not connection.closed:
                    self.release(connection)
            raise
        finally:
            if timer is not None:
                timer.cancel()
            self._remove_waiter(waiter)

    def release(self, connection: HTTP11Connection) -> None:
        """Give a connection back: to who waits first, or to be idle."""
        origin = self._open[connection]
        group = self._group(origin)
        waiter = _first(group.waiters) if group.waiters else None
        other = _first(self._waiting_for_slot) if self._waiting_for_slot else None
        if other and other.origin != origin and (not waiter or other.sequence < waiter.sequence):
            connection.close()  # and makes room
        elif waiter:
            self._remove_waiter(waiter)
            waiter.connection.set_result(connection)
        elif len(self._idle_since) >= self._max_idle:
            connection.close()
        else:
            group.idle[connection] = None
            self._idle_since[connection] = self._loop.time()
            if self._timer is None and self._expiry is not None:
                self._timer = self._loop.call_later(self._expiry, self._expire)

    def discard(self, connection: HTTP11Connection) -> None:
        """A connection was closed, whatever it was doing."""
        origin = self._open.pop(connection, None)
        if origin is None:
            return
        self._size -= 1
        if self._idle_since.pop(connection, None) is not None:
            del self._groups[origin].idle[connection]
        self._drop_if_empty(origin)
        self._assign_slots()

    def close(self) -> None:
        """Close every connection; who waits for one gets an error."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for task in self._connecting:
            task.cancel()
        self._connecting.clear()
        for group in list(self._groups.values()):
            for waiter in list(group.waiters):
                self._remove_waiter(waiter)
                if not waiter.connection.done():
                    waiter.connection.set_exception(
                        self._library.ConnectError("the client was closed")
                    )
        for connection in list(self._open):
            connection.fail(self._library.CloseError("the client was closed"))

    def state(self) -> PoolState:
        """What there is now, counted."""
        opened = Counter(self._open.values())
        origins = {
            origin: PoolState(opened[origin], len(g.idle), g.connecting, len(g.waiters))
            for origin, g in (
                (o, self._groups.get(o, OriginState())) for o in {*self._groups, *opened}
            )
        }
        return PoolState(
            len(self._open),
            len(self._idle_since),
            self._size - len(self._open),
            sum(state.waiting for state in origins.values()),
            _state_by_url(origins),
        )

    def _assign_slots(self) -> None:
        while waiter := _first(self._waiting_for_slot):
            if self._size >= self._max_connections:
                oldest = next(iter(self._idle_since), None)
                if oldest is None:
                    if unwanted := self._find_unneeded_connect(waiter.origin):
                        unwanted.cancel()  # and `_made` comes back here
                    return
                oldest.close()  # and comes back here
                continue
            del self._waiting_for_slot[waiter]
            waiter.has_slot = True
            self._size += 1
            self._group(waiter.origin).connecting += 1
            making = self._connect(waiter.origin, waiter.connect_timeout)
            task = self._loop.create_task(making)
            self._connecting[task] = waiter.origin
            task.add_done_callback(functools.partial(self._on_connect_done, waiter.origin))

    def _on_connect_done(self, origin: Origin, task: asyncio.Task[HTTP11Connection]) -> None:
        """Give the new connection, or the failure, to who waits first.

        Who it was made for may have been served meanwhile. Then a failure is nobody's.
        """
        group = self._groups[origin]
        group.connecting -= 1
        is_wanted = (
            self._connecting.pop(task, None) is not None
        )  # the pool was not closed meanwhile
        try:
            connection = task.result()
            if connection.closed:
                raise self._library.RemoteProtocolError(
                    "Server disconnected without sending a response."
                )
        except BaseException as exc:
            self._size -= 1
            waiting = (waiter for waiter in group.waiters if not waiter.connection.done())
            have_room = takewhile(lambda waiter: waiter.has_slot, waiting)  # who came first
            # Of those that are still being made, one that was given up is for nobody.
            coming = sum(o == origin and not t.cancelling() for t, o in self._connecting.items())
            failing = list(islice(have_room, coming + 1))
            if len(failing) > coming:
                self._remove_waiter(failing[0])
                failing[0].connection.set_exception(exc)
            self._drop_if_empty(origin)
            self._assign_slots()
        else:
            self._open[connection] = origin
            if is_wanted:
                self.release(connection)
            else:
                connection.close()

    def _find_unneeded_connect(self, by: Origin) -> asyncio.Task[HTTP11Connection] | None:
        """A connection that is being made to another origin, and nobody waits for any more."""
        making = [
            (task, origin) for task, origin in self._connecting.items() if not task.cancelling()
        ]
        wanted = Counter(
            waiter.origin
            for origin in {origin for _, origin in making}
            for waiter in self._groups[origin].waiters
            if waiter.has_slot and not waiter.connection.done()
        )
        for task, origin in making:
            if not wanted[origin] and origin != by:
                return task
            wanted[origin] -= 1
        return None

    def _on_pool_timeout(self, waiter: Waiter) -> None:
        if not waiter.has_slot and not waiter.connection.done():
            waiter.connection.set_exception(self._library.PoolTimeout(""))

    def _expire(self) -> None:
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
        self._waiting_for_slot.pop(waiter, None)
        if group := self._groups.get(waiter.origin):
            group.waiters.pop(waiter, None)
            self._drop_if_empty(waiter.origin)

    def _drop_if_empty(self, origin: Origin) -> None:
        group = self._groups.get(origin)
        if group is not None and not (group.idle or group.waiters or group.connecting):
            del self._groups[origin]


def _state_by_url(origins: Mapping[Origin, PoolState]) -> Mapping[str, PoolState]:
    """`origins` by their addresses; those that differ only in the name asked for in TLS as one."""
    states: dict[str, PoolState] = {}
    for (scheme, host, port, _), state in origins.items():
        name = host.decode()
        address = f"{scheme.decode()}://{f'[{name}]' if ':' in name else name}:{port}"
        other = states.get(address, PoolState(0, 0, 0, 0))
        states[address] = PoolState(
            state.open + other.open,
            state.idle + other.idle,
            state.connecting + other.connecting,
            state.waiting + other.waiting,
        )
    return states


def _first(waiters: Iterable[Waiter]) -> Waiter | None:
    return next((waiter for waiter in waiters if not waiter.connection.done()), None)

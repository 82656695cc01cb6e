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

from ..libraries import Library
from .connection import Connection

Origin = tuple[bytes, bytes, int, str | None]  # scheme, host, port, name to ask for in TLS
Connect = Callable[[Origin, float | None], Coroutine[None, None, Connection]]


@dataclass(slots=True, eq=False)
class Waiter:
    origin: Origin
    number: int  # in the order of their coming
    connection: asyncio.Future[Connection]
    connect_timeout: float | None
    has_room: bool = False  # a connection is being made for it, or for who came before it


@dataclass(slots=True, eq=False)
class Group:
    """What there is to one origin. Dicts, for these keep an order and forget one at no cost."""

    idle: dict[Connection, None] = field(default_factory=dict[Connection, None])
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
    def __init__(self, connect: Connect, limits: httpx.Limits, library: Library = httpx) -> None:
        self._connect = connect
        self._library = library
        self._most = math.inf if limits.max_connections is None else limits.max_connections
        most_idle = limits.max_keepalive_connections
        self._most_idle = math.inf if most_idle is None else most_idle
        self._expiry = limits.keepalive_expiry
        self._groups: dict[Origin, Group] = {}
        self._open: dict[Connection, Origin] = {}
        self._idle_since: dict[Connection, float] = {}
        self._without_room: OrderedDict[Waiter, None] = OrderedDict()
        self._making: dict[asyncio.Task[Connection], Origin] = {}
        self._size = 0  # open, or being made
        self._numbers = count()
        self._timer: asyncio.TimerHandle | None = None
        self._loop = cast(asyncio.AbstractEventLoop, None)  # that of the first `wait`

    def idle(self, origin: Origin) -> Connection | None:
        """An idle connection, the one that was used last."""
        group = self._groups.get(origin)
        if group is None or not group.idle:
            return None
        connection, _ = group.idle.popitem()
        del self._idle_since[connection]
        return connection

    async def wait(
        self, origin: Origin, timeout: float | None, connect_timeout: float | None
    ) -> Connection:
        """A connection that is made, or that somebody gives back.

        Raises:
            httpx.PoolTimeout, httpx.ConnectError, httpx.ConnectTimeout
        """
        group = self._group(origin)
        loop = self._loop = asyncio.get_running_loop()
        waiter = Waiter(origin, next(self._numbers), loop.create_future(), connect_timeout)
        group.waiters[waiter] = self._without_room[waiter] = None
        self._make_room()
        timer = None
        if timeout is not None and not waiter.has_room:
            timer = loop.call_later(timeout, self._give_up, waiter)
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
            self._forget(waiter)

    def release(self, connection: Connection) -> None:
        """Give a connection back: to who waits first, or to be idle."""
        origin = self._open[connection]
        group = self._group(origin)
        waiter = _first(group.waiters) if group.waiters else None
        other = _first(self._without_room) if self._without_room else None
        if other and other.origin != origin and (not waiter or other.number < waiter.number):
            connection.close()  # and makes room
        elif waiter:
            self._forget(waiter)
            waiter.connection.set_result(connection)
        elif len(self._idle_since) >= self._most_idle:
            connection.close()
        else:
            group.idle[connection] = None
            self._idle_since[connection] = self._loop.time()
            if self._timer is None and self._expiry is not None:
                self._timer = self._loop.call_later(self._expiry, self._expire)

    def lost(self, connection: Connection) -> None:
        """A connection was closed, whatever it was doing."""
        origin = self._open.pop(connection, None)
        if origin is None:
            return
        self._size -= 1
        if self._idle_since.pop(connection, None) is not None:
            del self._groups[origin].idle[connection]
        self._tidy(origin)
        self._make_room()

    def close(self) -> None:
        """Close every connection; who waits for one gets an error."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for task in self._making:
            task.cancel()
        self._making.clear()
        for group in list(self._groups.values()):
            for waiter in list(group.waiters):
                self._forget(waiter)
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
            for origin, g in ((o, self._groups.get(o, Group())) for o in {*self._groups, *opened})
        }
        return PoolState(
            len(self._open),
            len(self._idle_since),
            self._size - len(self._open),
            sum(state.waiting for state in origins.values()),
            _by_address(origins),
        )

    def _make_room(self) -> None:
        while waiter := _first(self._without_room):
            if self._size >= self._most:
                oldest = next(iter(self._idle_since), None)
                if oldest is None:
                    if unwanted := self._unwanted(waiter.origin):
                        unwanted.cancel()  # and `_made` comes back here
                    return
                oldest.close()  # and comes back here
                continue
            del self._without_room[waiter]
            waiter.has_room = True
            self._size += 1
            self._group(waiter.origin).connecting += 1
            making = self._connect(waiter.origin, waiter.connect_timeout)
            task = self._loop.create_task(making)
            self._making[task] = waiter.origin
            task.add_done_callback(functools.partial(self._made, waiter.origin))

    def _made(self, origin: Origin, task: asyncio.Task[Connection]) -> None:
        """Give the new connection, or the failure, to who waits first.

        Who it was made for may have been served meanwhile. Then a failure is nobody's.
        """
        group = self._groups[origin]
        group.connecting -= 1
        is_wanted = self._making.pop(task, None) is not None  # the pool was not closed meanwhile
        try:
            connection = task.result()
            if connection.closed:
                raise self._library.RemoteProtocolError(
                    "Server disconnected without sending a response."
                )
        except BaseException as exc:
            self._size -= 1
            waiting = (waiter for waiter in group.waiters if not waiter.connection.done())
            have_room = takewhile(lambda waiter: waiter.has_room, waiting)  # who came first
            # Of those that are still being made, one that was given up is for nobody.
            coming = sum(o == origin and not t.cancelling() for t, o in self._making.items())
            failing = list(islice(have_room, coming + 1))
            if len(failing) > coming:
                self._forget(failing[0])
                failing[0].connection.set_exception(exc)
            self._tidy(origin)
            self._make_room()
        else:
            self._open[connection] = origin
            if is_wanted:
                self.release(connection)
            else:
                connection.close()

    def _unwanted(self, by: Origin) -> asyncio.Task[Connection] | None:
        """A connection that is being made to another origin, and nobody waits for any more."""
        making = [(task, origin) for task, origin in self._making.items() if not task.cancelling()]
        wanted = Counter(
            waiter.origin
            for origin in {origin for _, origin in making}
            for waiter in self._groups[origin].waiters
            if waiter.has_room and not waiter.connection.done()
        )
        for task, origin in making:
            if not wanted[origin] and origin != by:
                return task
            wanted[origin] -= 1
        return None

    def _give_up(self, waiter: Waiter) -> None:
        if not waiter.has_room and not waiter.connection.done():
            waiter.connection.set_exception(self._library.PoolTimeout(""))

    def _expire(self) -> None:
        self._timer = None
        assert self._expiry is not None
        for connection, since in list(self._idle_since.items()):
            if since + self._expiry > self._loop.time():
                self._timer = self._loop.call_at(since + self._expiry, self._expire)
                return
            connection.close()

    def _group(self, origin: Origin) -> Group:
        group = self._groups.get(origin)
        if group is None:
            group = self._groups[origin] = Group()
        return group

    def _forget(self, waiter: Waiter) -> None:
        self._without_room.pop(waiter, None)
        if group := self._groups.get(waiter.origin):
            group.waiters.pop(waiter, None)
            self._tidy(waiter.origin)

    def _tidy(self, origin: Origin) -> None:
        group = self._groups.get(origin)
        if group is not None and not (group.idle or group.waiters or group.connecting):
            del self._groups[origin]


def _by_address(origins: Mapping[Origin, PoolState]) -> Mapping[str, PoolState]:
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

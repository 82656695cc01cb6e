"""The idle connections of a pool, and how long each may be used."""

import asyncio
import math
import random

from ._connection import HTTP11Connection
from ._pool_state import Origin

MAX_AGE_JITTER = 0.1
"""The part of `max_connection_age` that is drawn at random, so that not all close at once."""


class IdleConnections:
    """Keeps connections between requests. Their events and its timer may be late.

    Arguments:
        max_count: The number of connections to keep, over all origins.
        expiry: Seconds for which a connection may be idle, or None.
        max_age: Seconds after which a connection is not kept again, or None.
    """

    def __init__(self, max_count: float, expiry: float | None, max_age: float | None) -> None:
        self._max_count = max_count
        self._expiry = math.inf if expiry is None else expiry
        self._max_age = max_age
        # Dicts keep the order and delete in constant time. That of an origin may be empty while
        # all its connections are in use.
        self._by_origin: dict[Origin, dict[HTTP11Connection, None]] = {}
        self._since: dict[HTTP11Connection, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._since)

    @property
    def oldest(self) -> HTTP11Connection | None:
        """The connection that has been idle for the longest time."""
        return next(iter(self._since), None)

    def count(self) -> dict[Origin, int]:
        """Return the number of idle connections for each origin that has some."""
        return {origin: len(connections) for origin, connections in self._by_origin.items()}

    def register(self, connection: HTTP11Connection) -> None:
        """Set when a new connection has to retire."""
        if self._max_age is not None:
            age = self._max_age * (1 - MAX_AGE_JITTER * random.random())
            connection.retire_at = connection.loop.time() + age

    def forget(self, connection: HTTP11Connection, origin: Origin) -> None:
        """Forget a connection that has closed, idle or not."""
        connections = self._by_origin.get(origin)
        if self._since.pop(connection, None) is not None and connections is not None:
            del connections[connection]
        if connections is not None and not connections:
            del self._by_origin[origin]

    def find_limit(self, connection: HTTP11Connection, now: float) -> float:
        """Return the time until which a connection that was used may be idle.

        It must close now if that is not later than `now`.
        """
        if now >= connection.retire_at:
            return now
        if (announced := connection.keep_alive_timeout) is None:
            return now + self._expiry
        # One second earlier than the upstream closes it, because a request takes time to arrive.
        return now + min(announced - 1, self._expiry)

    def add(self, connection: HTTP11Connection, origin: Origin, now: float, limit: float) -> bool:
        """Keep an idle connection until `limit`. Return False if enough others are idle."""
        if len(self._since) >= self._max_count:
            return False
        connections = self._by_origin.get(origin)
        if connections is None:
            connections = self._by_origin[origin] = {}
        connections[connection] = None
        self._since[connection] = now
        connection.idle_until = limit
        if self._timer is None and self._expiry < math.inf:
            loop = connection.loop
            self._timer = loop.call_at(now + self._expiry, self._close_expired, loop)
        return True

    def pop(self, origin: Origin) -> HTTP11Connection | None:
        """Take the connection that was used last, if there is one that can be used."""
        while connections := self._by_origin.get(origin):
            connection, _ = connections.popitem()
            del self._since[connection]
            if connection.idle_until > connection.loop.time() and connection.is_reusable():
                return connection
            connection.close()
        return None

    def stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close_expired(self, loop: asyncio.AbstractEventLoop) -> None:
        """Close the connections that have been idle for too long. They are in order of time."""
        self._timer = None
        for connection, since in list(self._since.items()):
            if since + self._expiry > loop.time():
                self._timer = loop.call_at(since + self._expiry, self._close_expired, loop)
                return
            connection.close()

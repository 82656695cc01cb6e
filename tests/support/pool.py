"""A pool whose connects end when the test says so."""

import asyncio
import math
from typing import cast

from asgi_upstream.transport._connection import ConnectionOwner, HTTP11Connection
from asgi_upstream.transport._pool import Pool
from asgi_upstream.transport._pool_state import Origin
from tests.support.flavor import httpx

A: Origin = (b"http", b"a", 80, None)
B: Origin = (b"http", b"b", 80, None)
C: Origin = (b"http", b"c", 80, None)


class Fake:
    """All that the pool knows of a connection."""

    def __init__(self, pool: Pool, origin: Origin) -> None:
        self.pool, self.origin = pool, origin
        self.closed = self.has_input = False
        self.request_count = 0
        self.keep_alive_timeout: float | None = None
        self.retire_at = math.inf
        self.loop = asyncio.get_running_loop()

    def is_reusable(self) -> bool:
        return not (self.closed or self.has_input)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.pool.discard(cast(HTTP11Connection, self))

    def fail(self, failure: BaseException) -> None:
        self.close()


class Connects:
    """The pool under test, and the connects that it began: each ends when the test says so."""

    def __init__(
        self,
        most: int | None = 2,
        idle: int | None = 2,
        expiry: float | None = None,
        age: float | None = None,
    ) -> None:
        limits = httpx.Limits(
            max_connections=most, max_keepalive_connections=idle, keepalive_expiry=expiry
        )
        self.pool = Pool(self, limits, httpx, age)
        self.begun: list[tuple[Origin, asyncio.Future[Fake]]] = []
        self.made: list[Fake] = []

    async def connect(
        self, origin: Origin, owner: ConnectionOwner, timeout: float | None
    ) -> HTTP11Connection:
        ends: asyncio.Future[Fake] = asyncio.get_running_loop().create_future()
        self.begun.append((origin, ends))
        try:
            return cast(HTTP11Connection, await ends)
        except asyncio.CancelledError:
            if not ends.cancelled() and ends.exception() is None:
                ends.result().close()  # as `create_connection` does
            raise

    @property
    def under_way(self) -> list[tuple[Origin, asyncio.Future[Fake]]]:
        return [one for one in self.begun if not one[1].done()]

    def complete(self, number: int = 0) -> Fake:
        origin, ends = self.under_way[number]
        connection = Fake(self.pool, origin)
        self.made.append(connection)
        ends.set_result(connection)
        return connection

    def fail(self, failure: Exception, number: int = 0) -> None:
        self.under_way[number][1].set_exception(failure)

    async def take(self, origin: Origin, timeout: float | None = None) -> Fake:
        connection = self.pool.pop_idle(origin) or await self.pool.acquire(origin, timeout, None)
        return cast(Fake, connection)

    def taking(self, origin: Origin, timeout: float | None = None) -> "asyncio.Task[Fake]":
        return asyncio.create_task(self.take(origin, timeout))

    async def taken(self, origin: Origin) -> Fake:
        """A new one."""
        taking = self.taking(origin)
        await settle()
        self.complete()
        return await taking

    def release(self, connection: Fake) -> None:
        connection.request_count += 1
        self.pool.release(cast(HTTP11Connection, connection))

    def assert_empty(self) -> None:
        pool = self.pool
        assert not pool._open
        assert not pool._connecting
        assert not pool._spare
        assert not pool._idle._since
        assert not pool._idle._by_origin
        assert not pool._waiters._by_origin
        assert not pool._waiters._without_connect


def size(pool: Pool) -> int:
    return len(pool._open) + len(pool._connecting)


async def settle() -> None:
    """Until nothing happens any more."""
    for _ in range(10):
        await asyncio.sleep(0)

"""The pool, with connections that are made when the test says so, and by a model of its counts."""

import asyncio
import math
from collections.abc import Callable
from typing import Any, cast

import httpx
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from asgi_upstream.transport._connection import ConnectionOwner, HTTP11Connection
from asgi_upstream.transport._pool import Pool
from asgi_upstream.transport._pool_state import Origin
from tests.support.examples import count_examples

pytestmark = [pytest.mark.anyio, pytest.mark.asyncio_only]

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


# Idle connections.


async def test_most_recently_used_connection_is_used_next() -> None:
    c = Connects(most=3, idle=3)
    first, second, third = [await c.taken(A) for _ in range(3)]
    for connection in (second, third, first):
        c.release(connection)
    assert [await c.take(A) for _ in range(3)] == [first, third, second]
    assert len(c.begun) == 3


async def test_a_connection_serves_its_own_origin_only() -> None:
    c = Connects(most=5, idle=5)
    kept = {origin: await c.taken(origin) for origin in (A, B)}
    for connection in kept.values():
        c.release(connection)
    same_but_name: Origin = (*A[:3], "another.name")
    assert c.pool.pop_idle(C) is None
    assert c.pool.pop_idle(same_but_name) is None
    assert await c.take(B) is kept[B]
    assert await c.take(A) is kept[A]


async def test_no_more_idle_connections_are_kept_than_the_limit() -> None:
    c = Connects(most=3, idle=1)
    first, second, third = [await c.taken(A) for _ in range(3)]
    for connection in (first, second, third):
        c.release(connection)
    assert [first.closed, second.closed, third.closed] == [False, True, True]
    assert size(c.pool) == 1


async def test_an_idle_connection_that_closes_is_forgotten() -> None:
    c = Connects()
    connection = await c.taken(A)
    c.release(connection)
    connection.close()
    c.assert_empty()


async def test_a_connection_in_use_that_closes_leaves_nothing_behind() -> None:
    c = Connects(most=None)
    for number in range(100):
        origin = (b"http", b"%d" % number, 80, None)
        connection = await c.taken(origin)
        c.release(connection)
        assert await c.take(origin) is connection
        connection.close()
    c.assert_empty()


async def test_idle_connections_expire_by_one_timer() -> None:
    loop = asyncio.get_running_loop()
    c = Connects(most=200, idle=200, expiry=0.5)
    connections = [await c.taken(A) for _ in range(100)]
    before = scheduled(loop)
    for connection in connections:
        c.release(connection)
        c.release(await c.take(A))
    assert scheduled(loop) - before == 1
    last = await c.take(A)
    await asyncio.sleep(0.3)
    c.release(last)
    await asyncio.sleep(0.4)  # the others have expired, and it has not
    assert [one for one in connections if not one.closed] == [last]
    async with asyncio.timeout(60):
        while not last.closed:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    c.assert_empty()
    await asyncio.sleep(0.01)
    assert c.pool._idle._timer is None


def scheduled(loop: Any) -> int:
    return sum(not handle.cancelled() for handle in loop._scheduled)


@pytest.mark.parametrize("limits", [{"expiry": 0.0}, {"announced": 1.0}, {"expiry": -1.0}])
async def test_connection_without_idle_time_is_not_reused(limits: dict[str, float]) -> None:
    c = Connects(most=1, expiry=limits.get("expiry"))
    first = await c.taken(A)
    first.keep_alive_timeout = limits.get("announced")
    waiting = c.taking(A)
    await settle()
    c.release(first)
    await settle()
    assert first.closed
    assert c.complete() is await waiting


async def test_idle_connection_past_its_expiry_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The timer is late if the event loop was busy. `Keep-Alive: timeout=5` has no timer."""
    for expiry, announced, idle_for, usable in (
        (5.0, None, 4.9, True), (5.0, None, 5.0, False), (9.0, 5.0, 3.9, True),
        (9.0, 5.0, 4.0, False), (None, 5.0, 4.0, False), (3.0, 5.0, 3.0, False),
    ):  # fmt: skip
        c = Connects(expiry=expiry)
        connection = await c.taken(A)
        connection.keep_alive_timeout = announced
        c.release(connection)
        with monkeypatch.context() as patch:
            now = asyncio.get_running_loop().time() + idle_for
            patch.setattr(asyncio.get_running_loop(), "time", lambda now=now: now)
            found = c.pool.pop_idle(A)
        assert (found is not None) is usable
        assert connection.closed is not usable
        c.pool.close()


async def test_idle_connection_with_unread_input_is_not_used() -> None:
    c = Connects()
    good, bad = await c.taken(A), await c.taken(A)
    c.release(good)
    c.release(bad)
    bad.has_input = True
    assert c.pool.pop_idle(A) is cast(HTTP11Connection, good)
    assert bad.closed


async def test_connection_with_unread_input_is_not_given_to_a_waiter() -> None:
    c = Connects(most=1)
    connection = await c.taken(A)
    waiting = c.taking(A)
    await settle()
    c.release(connection)
    connection.has_input = True  # before the waiter runs
    await settle()
    assert connection.closed
    assert c.complete() is await waiting


async def test_connection_past_its_maximum_age_closes_at_release(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    c = Connects(expiry=None, age=100.0)
    young, old = await c.taken(A), await c.taken(A)
    c.release(young)
    assert not young.closed
    loop = asyncio.get_running_loop()
    now = loop.time()
    assert all(now + 89 <= connection.retire_at <= now + 100 for connection in (young, old))
    monkeypatch.setattr(loop, "time", lambda: now + 100.1)
    c.release(old)
    assert old.closed


async def test_one_in_use_does_not_expire() -> None:
    c = Connects(expiry=0.05)
    connection = await c.taken(A)
    c.release(connection)
    assert await c.take(A) is connection
    await asyncio.sleep(0.2)
    assert not connection.closed
    connection.close()


# Those who wait.


async def test_who_waits_first_is_served_first() -> None:
    c = Connects(most=1)
    connection = await c.taken(A)
    order: list[int] = []

    async def use(number: int) -> None:
        taken = await c.take(A)
        order.append(number)
        await asyncio.sleep(0)
        c.release(taken)

    users = [asyncio.create_task(use(number)) for number in range(10)]
    await settle()
    assert order == []
    c.release(connection)
    await asyncio.wait(users)
    assert order == list(range(10))
    assert len(c.begun) == 1


async def test_there_are_never_more_connections_than_the_limit() -> None:
    c = Connects(most=3)
    waiting = [c.taking(origin) for origin in (A, A, B, B, C, C)]
    await settle()
    assert [origin for origin, _ in c.begun] == [A, A, B]
    for _ in range(3):
        c.complete()
    await settle()
    assert [one.done() for one in waiting] == [True] * 3 + [False] * 3
    assert len(c.begun) == 3
    for one in waiting:
        one.cancel()


async def test_without_a_limit_everybody_connects_at_once() -> None:
    c = Connects(most=None, idle=None)
    waiting = [c.taking(A) for _ in range(300)]
    await settle()
    for _ in range(300):
        c.complete()
    for connection in await asyncio.gather(*waiting):
        c.release(connection)
    assert len(c.pool._idle) == 300


async def test_full_pool_closes_oldest_idle_connection_of_other_origin() -> None:
    c = Connects(most=2)
    older, newer = await c.taken(A), await c.taken(B)
    c.release(older)
    c.release(newer)
    taken = await c.taken(C)
    assert (older.closed, newer.closed, taken.closed) == (True, False, False)
    assert size(c.pool) == 2


async def test_an_origin_is_not_starved_by_a_busy_one() -> None:
    c = Connects(most=1)
    connection = await c.taken(A)
    busy = [c.taking(A)]
    await settle()
    patient = c.taking(B)
    await settle()
    for _ in range(3):
        busy.append(c.taking(A))
    await settle()
    c.release(connection)  # who came before B is served
    await settle()
    assert (busy[0].done(), patient.done(), connection.closed) == (True, False, False)
    c.release(busy[0].result())  # and now it is B's turn
    await settle()
    assert connection.closed
    assert [origin for origin, _ in c.under_way] == [B]
    c.complete()
    c.release(await patient)
    await settle()
    assert [origin for origin, _ in c.under_way] == [A]
    c.complete()
    await settle()
    assert [one.done() for one in busy] == [True, True, False, False]
    for one in busy:
        one.cancel()


async def test_a_connection_that_is_lost_makes_room() -> None:
    c = Connects(most=1)
    connection = await c.taken(A)
    waiting = c.taking(A)
    await settle()
    connection.close()
    await settle()
    c.complete()
    assert not (await waiting).closed


async def test_waiter_takes_a_connection_released_before_its_connect() -> None:
    c = Connects(most=2)
    connection = await c.taken(A)
    waiting = c.taking(A)
    await settle()
    assert len(c.under_way) == 1
    c.release(connection)
    assert await waiting is connection
    late = c.complete()  # and is kept for the next
    await settle()
    assert await c.take(A) is late


async def test_a_connect_that_outlives_its_waiter_serves_the_next() -> None:
    c = Connects(most=1)
    waiting = c.taking(A)
    await settle()
    waiting.cancel()
    await settle()
    following = c.taking(A)
    await settle()
    assert len(c.begun) == 1
    connection = c.complete()
    assert await following is connection


async def test_connect_without_waiter_is_kept_or_gives_its_slot_away() -> None:
    c = Connects(most=1)
    waiting = c.taking(A)
    await settle()
    waiting.cancel()
    await settle()
    connection = c.complete()
    await settle()
    assert c.pool.pop_idle(A) is cast(HTTP11Connection, connection)
    c.release(connection)
    other = c.taking(B)
    await settle()
    assert connection.closed
    c.complete()
    assert (await other).origin == B


async def test_waiter_of_an_abandoned_connect_gets_the_others_failure() -> None:
    c = Connects(most=2)
    leaving, staying = c.taking(A), c.taking(A)
    await settle()
    leaving.cancel()
    await settle()
    other = c.taking(B)  # one of the connects to A gives its room, and before that has ended
    c.fail(httpx.ConnectError("refused"), 1)  # the other one fails
    with pytest.raises(httpx.ConnectError, match="refused"):
        await staying
    await settle()
    c.complete()
    (await other).close()
    c.assert_empty()


async def test_waiter_gets_the_failure_of_the_connect_it_took_over() -> None:
    c = Connects(most=2)
    first, second = c.taking(A), c.taking(A)
    await settle()
    connection = c.complete(1)  # that of the second waiter
    assert await first is connection
    c.fail(httpx.ConnectError("refused"))
    with pytest.raises(httpx.ConnectError, match="refused"):
        await asyncio.wait_for(second, 10)
    connection.close()
    c.assert_empty()


async def test_connection_of_a_cancelled_waiter_goes_to_the_next() -> None:
    c = Connects(most=1)
    connection = await c.taken(A)
    cancelled, following = c.taking(A), c.taking(A)
    await settle()
    c.release(connection)
    cancelled.cancel()  # before it ran with what it was given
    assert await following is connection
    assert cancelled.cancelled()


async def test_connection_of_a_cancelled_waiter_may_have_closed() -> None:
    c = Connects(most=1)
    connection = await c.taken(A)
    cancelled = c.taking(A)
    await settle()
    c.release(connection)
    cancelled.cancel()
    connection.close()
    await asyncio.wait([cancelled])
    assert cancelled.cancelled()
    c.assert_empty()


# Failures.


async def test_a_failure_goes_to_who_the_connect_was_for() -> None:
    c = Connects(most=2)
    first, second = c.taking(A), c.taking(B)
    await settle()
    c.fail(httpx.ConnectError("of b"), 1)
    await settle()
    assert not first.done()
    with pytest.raises(httpx.ConnectError, match="of b"):
        await second
    c.complete()
    assert (await first).origin == A


async def test_a_failure_after_its_waiter_was_served_is_nobodys() -> None:
    c = Connects(most=2)
    connection = await c.taken(A)
    waiting = c.taking(A)
    await settle()
    c.release(connection)
    assert await waiting is connection
    following = c.taking(A)  # has no room, and begins anew when the first connect has failed
    await settle()
    assert len(c.begun) == 2
    c.fail(httpx.ConnectError("of the one that was served"))
    await settle()
    c.complete()
    assert not (await following).closed


async def test_a_failure_does_not_reach_who_has_a_connect_of_their_own() -> None:
    c = Connects(most=2)
    leaving, staying = c.taking(A), c.taking(A)
    await settle()
    c.fail(httpx.ConnectError("of the one that left"))
    leaving.cancel()
    await settle()
    assert leaving.cancelled()
    assert not staying.done()
    c.complete()
    assert not (await staying).closed


async def test_failed_connect_fails_one_waiter_and_frees_its_slot() -> None:
    c = Connects(most=1)
    waiting = [c.taking(A) for _ in range(3)]
    await settle()
    for number in range(3):
        c.fail(httpx.ConnectError(str(number)))
        await settle()
        assert [one.done() for one in waiting] == [n <= number for n in range(3)]
    assert [str(one.exception()) for one in waiting] == ["0", "1", "2"]
    c.assert_empty()


async def test_connection_closed_before_its_first_use_is_a_failure() -> None:
    c = Connects()
    waiting = c.taking(A)
    await settle()
    c.complete().closed = True
    with pytest.raises(httpx.RemoteProtocolError):
        await waiting
    c.assert_empty()


async def test_who_has_no_room_in_time_has_a_pool_timeout() -> None:
    c = Connects(most=1)
    connection = await c.taken(A)
    for origin in (A, B):
        with pytest.raises(httpx.PoolTimeout):
            await c.take(origin, 0.05)
    c.release(connection)
    assert await c.take(A, 0.05) is connection


async def test_waiter_with_a_slot_is_under_the_connect_timeout() -> None:
    """And no longer under the pool timeout."""
    c = Connects(most=1)
    connection = await c.taken(A)
    waiting = c.taking(B, 0.05)
    await settle()
    c.release(connection)
    await asyncio.sleep(0.2)
    c.complete()
    assert (await waiting).origin == B


# Closing.


async def test_closing_closes_all_and_tells_those_who_wait() -> None:
    c = Connects(most=3)
    in_use, idle = await c.taken(A), await c.taken(B)
    c.release(idle)
    connecting = c.taking(A)
    await settle()
    idle_again = await c.take(B)
    waiting = [c.taking(A), c.taking(B)]
    await settle()
    c.release(idle_again)
    await settle()
    c.pool.close()
    for one in (connecting, *waiting[:1]):
        with pytest.raises(httpx.ConnectError, match="the client was closed"):
            await one
    assert in_use.closed
    assert idle.closed
    await settle()
    c.assert_empty()
    assert c.begun[-1][1].cancelled()


async def test_closing_before_a_connect_has_begun_leaves_nothing() -> None:
    c = Connects()
    waiting = c.taking(A)
    await asyncio.sleep(0)  # `wait` ran, and the connect did not
    assert c.begun == []
    c.pool.close()
    with pytest.raises(httpx.ConnectError):
        await waiting
    await settle()
    c.assert_empty()


@pytest.mark.parametrize("turns", [1, 2, 3, 4])
async def test_connection_made_as_the_pool_closes_is_closed(turns: int) -> None:
    c = Connects()
    waiting = c.taking(A)
    await settle()
    connection = c.complete()
    for _ in range(turns):  # the connect ends, the pool is told, who waits is given it
        await asyncio.sleep(0)
    c.pool.close()
    await asyncio.gather(waiting, return_exceptions=True)
    await settle()
    assert connection.closed
    c.assert_empty()


# A model of the counts.


class Counts(RuleBasedStateMachine):
    """Anything that may happen to a pool, in any order. In the end everybody's wait has ended."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.c = self.run(self.make())
        self.waiting: list[asyncio.Task[Fake]] = []
        self.in_use: list[Fake] = []

    async def make(self) -> Connects:
        return Connects(most=3, idle=2)

    def run(self, coroutine: Any) -> Any:
        return self.loop.run_until_complete(coroutine)

    def act(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call it as the loop does, without a turn of it before or after."""
        asyncio._set_running_loop(self.loop)
        try:
            return function(*arguments)
        finally:
            asyncio._set_running_loop(None)

    @rule(origin=st.sampled_from([A, B, C]), timeout=st.sampled_from([None, None, 0.0]))
    def take(self, origin: Origin, timeout: float | None) -> None:
        self.waiting.append(self.loop.create_task(self.c.take(origin, timeout)))

    @rule()
    def turn(self) -> None:
        """One turn of the loop, so that other things happen in the midst of things."""
        self.run(asyncio.sleep(0))
        self.sort()

    @rule()
    def settle(self) -> None:
        self.run(settle())
        self.sort()

    @precondition(lambda self: self.c.under_way)
    @rule(data=st.data(), closed=st.booleans())
    def connect(self, data: st.DataObject, closed: bool) -> None:
        number = data.draw(st.integers(0, len(self.c.under_way) - 1))
        self.act(self.c.complete, number).closed = closed

    @precondition(lambda self: self.c.under_way)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(0, len(self.c.under_way) - 1))
        self.act(self.c.fail, httpx.ConnectError("refused"), number)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.waiting)).cancel()

    @precondition(lambda self: self.in_use)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        connection = self.drawn(data)
        if not connection.closed:
            self.act(self.c.release, connection)

    @precondition(lambda self: self.in_use)
    @rule(data=st.data())
    def finish_with_a_close(self, data: st.DataObject) -> None:
        self.act(self.drawn(data).close)

    @precondition(lambda self: self.c.made)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        self.act(data.draw(st.sampled_from(self.c.made)).close)

    @rule()
    def close(self) -> None:
        self.act(self.c.pool.close)

    def drawn(self, data: st.DataObject) -> Fake:
        connection = data.draw(st.sampled_from(self.in_use))
        self.in_use.remove(connection)
        return connection

    def sort(self) -> None:
        for task in [task for task in self.waiting if task.done()]:
            self.waiting.remove(task)
            if not task.cancelled():
                failure = task.exception()
                assert failure is None or isinstance(failure, httpx.TransportError)
                if failure is None:
                    assert task.result() not in self.in_use
                    self.in_use.append(task.result())

    @invariant()
    def the_counts_are_right(self) -> None:
        pool = self.c.pool
        assert size(pool) <= 3
        assert len(pool._idle) <= 2
        assert set(pool._spare) <= pool._connecting
        assert not any(connection.closed for connection in pool._open)
        idle = [one for origin in pool._idle._by_origin.values() for one in origin]
        assert set(idle) == set(pool._idle._since)
        assert not set(idle) & set(cast(list[HTTP11Connection], self.in_use))
        # One that was cancelled is forgotten when its task goes on.
        waiting = [one for one in pool._waiters._without_connect if not one.connection.done()]
        assert size(pool) == 3 or not waiting

    def teardown(self) -> None:
        try:
            self.everybody_is_served()
        finally:
            self.loop.close()

    def everybody_is_served(self) -> None:
        self.run(settle())
        self.sort()
        for _ in range(1000):
            if not (self.waiting or self.in_use or self.c.under_way):
                break
            for connection in self.in_use:
                if not connection.closed:
                    self.act(self.c.release, connection)
            self.in_use.clear()
            while self.c.under_way:
                self.act(self.c.complete)
            self.run(settle())
            self.sort()
        assert self.waiting == []
        self.act(self.c.pool.close)
        self.run(settle())
        self.c.assert_empty()
        assert all(connection.closed for connection in self.c.made)


CountsTest = Counts.TestCase
CountsTest.settings = settings(
    max_examples=count_examples(37),
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

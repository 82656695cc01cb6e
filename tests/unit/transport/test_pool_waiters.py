"""How the pool serves waiters, fails and closes."""

import asyncio
from typing import cast

import pytest

from asgi_upstream.transport._connection import HTTP11Connection
from tests.support.flavor import httpx
from tests.support.pool import A, B, C, Connects, settle, size

pytestmark = [pytest.mark.anyio, pytest.mark.asyncio_only, pytest.mark.virtual_time]


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
        await asyncio.wait_for(second, 60)
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

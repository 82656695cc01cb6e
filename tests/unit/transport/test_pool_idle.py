"""How the pool keeps, reuses and expires idle connections."""

import asyncio
import random
from typing import Any, cast

import pytest

from asgi_upstream.transport._connection import HTTP11Connection
from asgi_upstream.transport._pool_state import Origin
from tests.support.pool import A, B, C, Connects, settle, size

pytestmark = [pytest.mark.anyio, pytest.mark.asyncio_only, pytest.mark.virtual_time]


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
    loop = asyncio.get_running_loop()
    now = loop.time()
    monkeypatch.setattr(loop, "time", lambda: now)
    monkeypatch.setattr(random, "random", iter((0.0, 0.9)).__next__)
    c = Connects(expiry=None, age=100.0)
    full, reduced = await c.taken(A), await c.taken(A)  # by up to a tenth, at random
    monkeypatch.setattr(loop, "time", lambda: now + 90.9)
    c.release(full)
    assert not full.closed
    monkeypatch.setattr(loop, "time", lambda: now + 91.1)
    c.release(reduced)
    assert reduced.closed


async def test_one_in_use_does_not_expire() -> None:
    c = Connects(expiry=0.05)
    connection = await c.taken(A)
    c.release(connection)
    assert await c.take(A) is connection
    await asyncio.sleep(0.2)
    assert not connection.closed
    connection.close()

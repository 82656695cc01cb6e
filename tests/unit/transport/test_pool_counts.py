"""A model of the pool's counts, under anything that may happen to it."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from asgi_upstream.transport._connection import HTTP11Connection
from asgi_upstream.transport._pool_state import Origin
from tests.support.examples import count_examples
from tests.support.flavor import httpx
from tests.support.pool import A, B, C, Connects, Fake, settle, size


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

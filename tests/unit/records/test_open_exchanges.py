"""How many exchanges are open, and the state of the pool."""

import dataclasses

import anyio
import pytest

from asgi_upstream import Outcome, count_open_exchanges
from asgi_upstream.transport import PoolState
from tests.support.asgi import Caller
from tests.support.ports import open_full_port
from tests.support.recorded import (
    OWN,
    Answer,
    Observed,
    every_way,
    observing,
    recorded_tests,
    streamed,
)
from tests.support.upstream import Upstream
from tests.support.waiting import aeventually

pytestmark = recorded_tests


@every_way
@pytest.mark.parametrize("path", ["/never", "/silent_after_head", "/silent_mid_body"])
async def test_an_open_exchange_is_counted(seen: Observed, way: Answer, path: str) -> None:
    assert count_open_exchanges(seen.client) == 0
    async with anyio.create_task_group() as group:
        group.start_soon(Caller().call, way(seen, path))
        await aeventually(lambda: seen.upstream.open_exchanges == 1)
        assert count_open_exchanges(seen.client) == 1
        if seen.own is not None:
            one = PoolState(open=1, idle=0, connecting=0, waiting=0)
            address = f"http://127.0.0.1:{seen.upstream.port}"
            assert seen.own.pool_state() == dataclasses.replace(one, origins={address: one})
        group.cancel_scope.cancel()
    await seen.is_at_rest()
    assert seen.only.outcome is Outcome.CANCELLED


@every_way
async def test_an_exchange_that_waits_for_a_place_is_counted(seen: Observed, way: Answer) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(Caller().call, way(seen, "/never"))
        await aeventually(lambda: seen.upstream.open_exchanges == 1)
        group.start_soon(Caller().call, way(seen, "/item"))
        await aeventually(lambda: count_open_exchanges(seen.client) == 2)
        if seen.own is not None:
            own = seen.own
            await aeventually(lambda: own.pool_state().waiting == 1)
            state = own.pool_state()
            assert (state.open, state.idle, state.connecting) == (1, 0, 0)
        group.cancel_scope.cancel()
    await seen.is_at_rest()
    assert [record.outcome for record in seen.records] == [Outcome.CANCELLED] * 2
    seen.records.clear()


@pytest.mark.asyncio_only
async def test_pool_state_counts_a_connection_being_made(
    upstream: Upstream,
) -> None:
    async with observing(upstream, OWN) as seen:
        assert seen.own is not None
        own = seen.own
        with open_full_port() as port:
            url = f"http://127.0.0.1:{port}/"
            async with anyio.create_task_group() as group:
                group.start_soon(Caller().call, streamed(seen, url))
                await aeventually(lambda: own.pool_state().connecting == 1)
                one = PoolState(open=0, idle=0, connecting=1, waiting=1)
                state = own.pool_state()
                assert state == dataclasses.replace(one, origins={url.removesuffix("/"): one})
                assert count_open_exchanges(seen.client) == 1
                group.cancel_scope.cancel()
            await own.aclose()  # it would serve the next request, and is given up only here
            await aeventually(lambda: own.pool_state().connecting == 0)
        seen.records.clear()

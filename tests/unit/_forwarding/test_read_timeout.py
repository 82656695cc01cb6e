"""ReadTimeout, on an event loop whose time costs nothing."""

import asyncio
from collections.abc import Iterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from asgi_upstream._forwarding.read_timeout import ReadTimeout
from tests.support.memory import VirtualLoop


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    loop = VirtualLoop()
    yield loop
    assert loop.complaints == []
    loop.close()


async def read(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "chunk"


def test_each_read_has_the_whole_time(loop: VirtualLoop) -> None:
    async def run() -> None:
        timeout = ReadTimeout(1.0)
        for _ in range(5):
            assert await timeout.limit(read(0.9)) == "chunk"
            await asyncio.sleep(3)  # between reads, time does not count
        timeout.close()

    loop.run_until_complete(run())


def test_slow_read_raises_and_leaves_no_cancellation(loop: VirtualLoop) -> None:
    async def run() -> None:
        timeout = ReadTimeout(1.0)
        await timeout.limit(read(0.5))
        started = loop.time()
        with pytest.raises(TimeoutError):
            await timeout.limit(read(2))
        assert loop.time() - started == pytest.approx(1)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        assert await timeout.limit(read(0.5)) == "chunk"
        timeout.close()

    loop.run_until_complete(run())


def test_read_after_a_long_pause_is_limited(loop: VirtualLoop) -> None:
    async def run() -> None:
        timeout = ReadTimeout(1.0)
        await timeout.limit(read(0.5))
        await asyncio.sleep(3)
        with pytest.raises(TimeoutError):
            await timeout.limit(read(2))
        timeout.close()

    loop.run_until_complete(run())


def test_cancellation_after_a_timeout_is_a_cancellation(loop: VirtualLoop) -> None:
    async def run() -> None:
        timeout = ReadTimeout(1.0)
        with pytest.raises(TimeoutError):
            await timeout.limit(read(2))
        task = asyncio.current_task()
        assert task is not None
        loop.call_later(0.5, task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await timeout.limit(read(2))
        assert task.uncancel() == 0
        timeout.close()

    loop.run_until_complete(run())


def test_read_that_swallows_the_cancellation_leaves_none(loop: VirtualLoop) -> None:
    async def stubborn() -> str:
        try:
            await asyncio.sleep(9)
        except asyncio.CancelledError:
            return "late"
        return "never"

    async def run() -> None:
        timeout = ReadTimeout(1.0)
        assert await timeout.limit(stubborn()) == "late"
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        timeout.close()

    loop.run_until_complete(run())


@pytest.mark.parametrize("when", [0.5, 1.0])
def test_cancellation_of_the_task_continues(loop: VirtualLoop, when: float) -> None:
    async def run() -> None:
        timeout = ReadTimeout(1.0)
        task = asyncio.create_task(limited(timeout))
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_later(when, task.cancel)
        await asyncio.wait([task])
        assert task.cancelled()
        timeout.close()

    async def limited(timeout: ReadTimeout) -> None:
        await timeout.limit(read(9))

    loop.run_until_complete(run())


def test_outer_anyio_scope_at_the_same_time_continues(loop: VirtualLoop) -> None:
    async def run() -> None:
        timeout = ReadTimeout(1.0)
        with anyio.move_on_after(1.0) as scope:
            await timeout.limit(read(9))
        assert scope.cancelled_caught
        timeout.close()
        await anyio.lowlevel.checkpoint()  # nothing is left to be delivered

    loop.run_until_complete(run())


def test_reads_share_one_timer_that_close_cancels(
    loop: VirtualLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    timers: list[asyncio.TimerHandle] = []
    call_at = loop.call_at

    def record(when: float, *args: Any, **kwargs: Any) -> asyncio.TimerHandle:
        timers.append(call_at(when, *args, **kwargs))
        return timers[-1]

    async def immediate() -> str:
        return "chunk"

    async def run() -> None:
        timeout = ReadTimeout(60)
        for _ in range(100):
            await timeout.limit(immediate())
        timeout.close()

    monkeypatch.setattr(loop, "call_at", record)
    loop.run_until_complete(run())
    assert len(timers) == 1
    assert timers[0].cancelled()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_backends_raise_alike(backend: str) -> None:
    async def run() -> None:
        timeout = ReadTimeout(0.01)
        with pytest.raises(TimeoutError):
            await timeout.limit(forever())
        timeout.close()
        assert await ReadTimeout(None).limit(at_once()) == 1

    async def forever() -> None:
        await anyio.sleep_forever()

    async def at_once() -> int:
        return 1

    anyio.run(run, backend=backend)

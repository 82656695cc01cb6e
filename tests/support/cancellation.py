"""Cancels a task at each of its waits."""

import asyncio
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

import pytest

from tests.support.asgi import Caller
from tests.support.flavor import httpx
from tests.support.responses import AnyClass


@types.coroutine
def cancelled_at(wait: int, coroutine: Coroutine[Any, Any, None]) -> Generator[Any, Any, None]:
    """Run it, and cancel its task when it waits for the `wait`th time."""
    step: Any = coroutine.send
    value: Any = None
    while True:
        try:
            waits_for = step(value)
        except StopIteration:
            return
        wait -= 1
        if wait == 0:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
        try:
            step, value = coroutine.send, (yield waits_for)
        except BaseException as exc:
            step, value = coroutine.throw, exc


async def cancelled_at_each_wait(
    url: str, transport: Callable[[], Awaitable[httpx.AsyncBaseTransport]], cls: AnyClass, most: int
) -> int:
    """Cancel an exchange at each of its waits, with a pool of one; how many of them there were."""
    for wait in range(1, most):
        async with httpx.AsyncClient(transport=await transport(), base_url=url) as client:
            response = cls(client, client.build_request("GET", "/item"))
            caller = Caller()

            async def run(wait: int = wait, app: Any = response, caller: Caller = caller) -> None:
                await cancelled_at(wait, app(caller.scope, caller.receive, caller.send))

            task = asyncio.ensure_future(run())
            await asyncio.wait([task])
            again = await client.get("/item?size=2", timeout=httpx.Timeout(60, pool=20))
            assert again.text == "xx", f"after a cancellation at wait {wait}"
        if not task.cancelled():
            return wait - 1
    pytest.fail("the exchange has more waits than were tried")

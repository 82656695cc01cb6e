"""A real pool of one connection, and a request that is cancelled at each of its waits."""

import asyncio
import types
from collections.abc import Coroutine, Generator
from typing import Any
from unittest.mock import Mock

import httpx
import pytest

from asgi_upstream.httpcore_pool import EarlyAnswer
from tests.asgi import Caller
from tests.test_responses import AnyClass, both

serving: set[asyncio.Task[Any] | None] = set()


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    serving.add(asyncio.current_task())
    try:
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()
        serving.discard(asyncio.current_task())


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


@both
@pytest.mark.asyncio
async def test_a_pool_has_its_place_back_whenever_the_task_is_cancelled(cls: AnyClass) -> None:
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    cancelled = 0
    for wait in range(1, 40):
        limits = httpx.Limits(max_connections=1)
        async with httpx.AsyncClient(limits=limits, base_url=url, trust_env=False) as client:
            response = cls(client, client.build_request("GET", "/"))
            caller = Caller()

            async def run(wait: int = wait, app: Any = response, caller: Caller = caller) -> None:
                await cancelled_at(wait, app(caller.scope, caller.receive, caller.send))

            task = asyncio.ensure_future(run())
            await asyncio.wait([task])
            cancelled += task.cancelled()
            again = await client.get("/", timeout=httpx.Timeout(5, pool=0.5))
            assert again.text == "ok", f"after a cancellation at wait {wait}"
        if not task.cancelled():
            break
    assert cancelled > 5
    server.close()
    if tasks := [task for task in serving if task is not None]:
        await asyncio.wait(tasks, timeout=5)


@pytest.mark.parametrize("failure", [AttributeError, OSError, ValueError])
def test_a_connection_that_is_gone_has_given_no_early_answer(failure: type[Exception]) -> None:
    stream, client = object(), Mock()

    class Pool:
        _requests = [Mock()]  # noqa: RUF012

    Pool._requests[0].request.stream = stream
    connection = Pool._requests[0].connection = Mock(spec=["_network_stream"])
    # anyio asks the socket for both its names, whatever it is asked for itself.
    connection._network_stream.get_extra_info.side_effect = failure
    client._transport_for_url.return_value._pool = Pool()
    assert not EarlyAnswer(client, "http://any", stream).has_come()

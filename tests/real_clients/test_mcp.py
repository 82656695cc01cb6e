"""MCP by streamable HTTP: the official package's client and server, on each side of the relay.

Its newer protocol has a request for each call; the older one has a session, with a stream for what
the server tells by itself. `auto` takes the newer where the server speaks it.
"""

import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import anyio
import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.client.subscriptions import ToolsListChanged
from mcp.types import ToolListChangedNotification

from tests.real_clients.programs import listening
from tests.real_clients.upstreams import Upstreams, asked_directly, both_transports
from tests.support.servers import Server
from tests.support.waiting import aeventually

pytestmark = [pytest.mark.asyncio, both_transports]


@pytest.fixture(scope="session")
def mcp(upstreams: Upstreams, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    home, port = tmp_path_factory.mktemp("mcp"), upstreams.ports["mcp"]
    command = [sys.executable, "-m", "uvicorn", "--no-access-log", "--port", str(port)]
    command += ["--timeout-graceful-shutdown", "1", "tests.real_clients.mcp_server:app"]
    with listening(command, port, home):
        yield upstreams.url("mcp")


@asynccontextmanager
async def connected(
    relay: Server, mode: str, told: list[object] | None = None
) -> AsyncIterator[Client]:
    async def tell(message: object) -> None:
        if told is not None:
            told.append(message)

    url = f"http://127.0.0.1:{relay.port}/mcp/mcp"
    async with httpx2.AsyncClient(trust_env=False, timeout=60) as http:
        transport = streamable_http_client(url, http_client=http)
        async with Client(transport, mode=mode, message_handler=tell) as client:
            yield client


def seen(mcp: str) -> dict[str, int]:
    counts: dict[str, int] = asked_directly(f"{mcp}/seen")
    return counts


both = pytest.mark.parametrize("mode", ["auto", "legacy"])


@both
async def test_tools_are_listed_and_called(relay: Server, mcp: str, mode: str) -> None:
    async with connected(relay, mode) as client:
        names = {tool.name for tool in (await client.list_tools()).tools}
        assert {"add", "count"} <= names
        result = await client.call_tool("add", {"a": 1, "b": 2})
        assert result.structured_content == {"result": 3}


@both
async def test_notifications_come_while_the_call_goes_on(
    relay: Server, mcp: str, mode: str
) -> None:
    steps: list[float] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        assert not returned
        steps.append(progress)

    returned = False
    async with connected(relay, mode) as client:
        result = await client.call_tool("count", {"to": 10}, progress_callback=on_progress)
        returned = True
    assert result.structured_content == {"result": "counted to 10"}
    assert steps == [float(number) for number in range(1, 11)]


@both
async def test_many_calls_at_once_get_each_its_own_answer(
    relay: Server, mcp: str, mode: str
) -> None:
    async with connected(relay, mode) as client, anyio.create_task_group() as group:

        async def call(number: int) -> None:
            result = await client.call_tool("add", {"a": number, "b": number})
            assert result.structured_content == {"result": 2 * number}

        for number in range(30):
            group.start_soon(call, number)


@both
async def test_a_large_argument_arrives(relay: Server, mcp: str, mode: str) -> None:
    async with connected(relay, mode) as client:
        result = await client.call_tool("size", {"text": "a" * 1_000_000})
        assert result.structured_content == {"result": 1_000_000}


@both
async def test_a_call_that_its_caller_gives_up_ends_at_the_server(
    relay: Server, mcp: str, mode: str
) -> None:
    # The newer protocol has no message for it: the client closes the stream of the call.
    before = seen(mcp).get("cancelled", 0)
    started = anyio.Event()

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        started.set()

    async with connected(relay, mode) as client:
        async with anyio.create_task_group() as group:

            async def call() -> None:
                await client.call_tool("count_for_ever", progress_callback=on_progress)

            group.start_soon(call)
            with anyio.fail_after(60):
                await started.wait()
            group.cancel_scope.cancel()
        await aeventually(lambda: seen(mcp).get("cancelled", 0) > before)
        assert (await client.call_tool("add", {"a": 1, "b": 2})).structured_content == {"result": 3}


async def test_who_listens_is_told_of_a_change(relay: Server, mcp: str) -> None:
    async with (
        connected(relay, "auto") as client,
        client.listen(tools_list_changed=True) as changes,
    ):
        for _ in range(3):
            await client.call_tool("publish")
            with anyio.fail_after(60):
                assert isinstance(await anext(aiter(changes)), ToolsListChanged)


async def test_the_server_tells_by_itself_on_the_stream_of_a_session(
    relay: Server, mcp: str
) -> None:
    told: list[object] = []
    before = seen(mcp).get("GET /mcp", 0)
    async with connected(relay, "legacy", told) as client:
        await aeventually(lambda: seen(mcp).get("GET /mcp", 0) > before)
        await client.call_tool("announce")
        await aeventually(lambda: any(isinstance(m, ToolListChangedNotification) for m in told))


async def test_the_end_of_a_session_reaches_the_server(relay: Server, mcp: str) -> None:
    before = seen(mcp).get("DELETE /mcp", 0)
    async with connected(relay, "legacy") as client:
        await client.call_tool("add", {"a": 1, "b": 2})
    assert seen(mcp)["DELETE /mcp"] == before + 1

"""Messages and closes of a relayed WebSocket whose upstream reads and writes as the test says."""

import tracemalloc
from itertools import pairwise
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from starlette.types import Message
from starlette.websockets import WebSocket

from asgi_upstream import ExchangeRecord, Outcome, ReverseProxy, relay_websocket
from tests.support.flavor import httpcore, httpx
from tests.support.scripted_websocket import HEARD, SCOPE, Pouring, Scripted, SlowReader, called

pytestmark = pytest.mark.virtual_time


@pytest.mark.anyio
@pytest.mark.parametrize("error", [httpcore.WriteError, httpx.WriteError])
async def test_last_upstream_message_is_relayed_after_a_failed_write(
    error: type[Exception],
) -> None:
    assert await Scripted(write_error=error("gone")).calls() == HEARD


@pytest.mark.anyio
async def test_os_error_of_the_upstream_is_not_a_disconnect() -> None:
    with pytest.raises(OSError, match="broken TLS"):
        await Scripted(write_error=OSError("broken TLS")).calls()


@pytest.mark.anyio
@pytest.mark.parametrize("error", [RuntimeError, OSError])
async def test_a_server_that_cannot_send_says_that_the_caller_has_left(
    error: type[Exception],
) -> None:
    records: list[ExchangeRecord] = []

    async def receive() -> Message:
        if not coming:
            await anyio.sleep_forever()
        return coming.pop()

    async def send(message: Message) -> None:
        if message["type"] == "websocket.send":
            raise error("broken pipe")

    coming: list[Message] = [
        {"type": "websocket.receive", "text": "anybody?"},
        {"type": "websocket.connect"},
    ]
    upstream = Scripted(write_error=httpcore.WriteError("gone"))
    async with httpx.AsyncClient(base_url="http://x", transport=upstream) as client:
        app = ReverseProxy(observers=[records.append])
        await app(SCOPE | {"state": {"client": client}}, receive, send)
    assert [record.outcome for record in records] == [Outcome.CALLER_DISCONNECTED_MID_BODY]


@pytest.mark.anyio
@pytest.mark.parametrize("error", [RuntimeError, OSError])
async def test_server_that_cannot_refuse_counts_as_a_disconnect(
    error: type[Exception],
) -> None:
    async def receive() -> Message:
        if not connecting:
            await anyio.sleep_forever()
        return connecting.pop()

    async def send(message: Message) -> None:
        raise error("broken pipe")

    connecting: list[Message] = [{"type": "websocket.connect"}]
    records: list[ExchangeRecord] = []
    scope = SCOPE | {"extensions": {"websocket.http.response": {}}}
    transport = httpx.MockTransport(lambda request: httpx.Response(401, text="who?"))
    async with httpx.AsyncClient(base_url="http://x", transport=transport) as client:
        websocket = WebSocket(scope, receive, send)
        await relay_websocket(client, websocket, observers=[records.append])
    (record,) = records
    assert record.outcome.startswith("caller_disconnected")
    assert record.exception is None


@pytest.mark.anyio
async def test_nothing_is_written_behind_a_frame_that_was_cut_off() -> None:
    upstream = Scripted()
    assert await upstream.calls() == HEARD
    assert len(upstream.written) == 1


@pytest.mark.anyio
async def test_many_short_messages_let_other_tasks_run() -> None:
    turns: list[int] = []
    heard = 0

    async def send(message: Message) -> None:
        nonlocal heard
        heard += message["type"] == "websocket.send"

    async def receive() -> Message:
        if not connecting:
            await anyio.sleep_forever()
        return connecting.pop()

    async def other() -> None:
        while heard < 10_000:
            turns.append(heard)
            await anyio.lowlevel.checkpoint()

    connecting: list[Message] = [{"type": "websocket.connect"}]
    upstream = Pouring(b"\x81\x01x" * 10_000 + b"\x8a\x00" * 10_000)
    async with httpx.AsyncClient(base_url="http://x", transport=upstream) as client:
        with anyio.move_on_after(20):
            async with anyio.create_task_group() as group:
                group.start_soon(other)
                await relay_websocket(client, WebSocket(SCOPE, receive, send))
    assert heard == 10_000
    assert max(after - before for before, after in pairwise(turns)) < 1000


@pytest.mark.anyio
@pytest.mark.asyncio_only
async def test_message_in_many_fragments_takes_memory_of_its_bytes() -> None:
    fragments = b"\x01\x00" + b"\x00\x02ab" * 12_000 + b"\x00\x00" * 12_000 + b"\x80\x04\r\n\rc"
    await Pouring(b"").calls()  # what is made once
    tracemalloc.start(1)
    try:
        sent = await Pouring(fragments).calls()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sent[1] == {"type": "websocket.send", "text": "ab" * 12_000 + "\r\n\rc"}
    assert peak < 1_000_000  # a list of the fragments alone would take 1.4 MB


@pytest.mark.anyio
async def test_a_close_that_has_come_already_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Waiting(Pouring):
        async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
            return await super().read(max_bytes) or await Scripted.read(self, max_bytes)

    async def receive() -> Message:
        if not connecting:
            await anyio.sleep_forever()
        return connecting.pop()

    async def send(message: Message) -> None:
        if message["type"] == "websocket.send":
            raise OSError("the caller has left")

    monkeypatch.setattr("asgi_upstream._websockets.upstream.CLOSING_HANDSHAKE_TIMEOUT", 11.0)
    connecting: list[Message] = [{"type": "websocket.connect"}]
    upstream = Waiting(b"\x81\x01x" * 3)
    began = anyio.current_time()
    async with httpx.AsyncClient(base_url="http://x", transport=upstream) as client:
        await relay_websocket(client, WebSocket(SCOPE, receive, send))
    assert anyio.current_time() - began < 10
    assert len(upstream.written) == 1


@pytest.mark.anyio
async def test_upstream_that_takes_a_long_message_needs_no_pong() -> None:
    """The ping waits behind the message, so its answer cannot come before."""
    coming: list[Message] = [
        {"type": "websocket.receive", "bytes": bytes(1_000_000)},
        {"type": "websocket.connect"},
    ]
    upstream = SlowReader(chunk_time=0.02)
    async with httpx.AsyncClient(base_url="http://x", transport=upstream) as client:

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await relay_websocket(client, WebSocket(scope, receive, send), ping_interval=0.01)

        assert await called(app, coming) == HEARD

"""Exchanges that are cancelled in the middle of their body, and clients that close meanwhile."""

import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from starlette.types import Message
from websockets.asyncio.server import ServerConnection, serve

from asgi_upstream import (
    ExchangeCancelled,
    ExchangeRecord,
    Outcome,
    ReverseProxy,
    StreamedResponse,
    UpstreamError,
    testing,
)
from asgi_upstream import lifespan as lifespan_module
from asgi_upstream._exchange import exchange as exchange_module
from tests.support.asgi import Caller, InMemoryUpstream, answering
from tests.support.flavor import AsyncioTransport, client_lifespan, httpx
from tests.support.waiting import aeventually

pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time]


async def cancelled(caller: Caller, frame: Callable[[Exception], bytes], before: float = 0) -> None:
    """Call a response whose upstream falls silent, and cancel that."""
    upstream = answering(b"a", 30.0, before=before)
    client = upstream.client()
    response = StreamedResponse(client, client.build_request("GET", "/"), on_stream_error=frame)
    with anyio.move_on_after(0.05) as scope:
        await response(caller.scope, caller.receive, caller.send)
    assert scope.cancelled_caught
    assert upstream.open == 0


async def test_exchange_cancelled_mid_body_ends_with_error_frame() -> None:
    caller, seen = Caller(), list[Exception]()

    def frame(exc: Exception) -> bytes:
        seen.append(exc)
        return b"frame"

    await cancelled(caller, frame)
    assert (caller.body, caller.complete) == (b"aframe", True)
    assert [type(exc) for exc in seen] == [ExchangeCancelled]


async def test_exchange_cancelled_before_its_start_sends_nothing() -> None:
    caller = Caller()
    await cancelled(caller, lambda exc: b"frame", before=30)
    assert caller.messages == []


async def test_cancelled_exchange_is_not_logged_as_a_failure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    await cancelled(Caller(), lambda exc: b"frame")
    assert caplog.records == []


async def test_error_frame_that_raises_is_logged_on_cancellation(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The cancellation still reaches the task."""

    def frame(exc: Exception) -> bytes:
        raise ValueError("broken")

    caller = Caller()
    await cancelled(caller, frame)
    assert not caller.complete
    [record] = caplog.records
    assert record.getMessage() == "the on_stream_error of a cancelled exchange failed"


async def test_caller_that_reads_no_error_frame_delays_no_cancellation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Deaf(Caller):
        async def send(self, message: Message) -> None:
            if message.get("body") == b"frame":
                await anyio.sleep(30)
            await super().send(message)

    monkeypatch.setattr(exchange_module, "ERROR_CHUNK_TIMEOUT", 0.05)
    caller = Deaf()
    with anyio.fail_after(60):
        await cancelled(caller, lambda exc: b"frame")
    assert not caller.complete


# The client.


@contextlib.asynccontextmanager
async def closed_meanwhile(upstream: InMemoryUpstream, caller: Caller) -> AsyncIterator[Any]:
    """A client whose lifespan was left while it had an exchange."""
    async with anyio.create_task_group() as group:
        async with client_lifespan(upstream.client)(None) as state:
            client: Any = state["client"]
            response = StreamedResponse(client, client.build_request("GET", "/"))
            group.start_soon(response, caller.scope, caller.receive, caller.send)
            await aeventually(lambda: upstream.open)
        yield client
        group.cancel_scope.cancel()


async def test_a_client_closes_after_the_last_exchange() -> None:
    upstream, caller = answering(b"a", 0.3, b"b"), Caller()
    async with closed_meanwhile(upstream, caller):
        assert (upstream.open, caller.body, caller.complete) == (0, b"ab", True)


async def test_client_closes_after_a_bound_with_an_open_exchange(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lifespan_module, "DRAIN_TIMEOUT", 0.05)
    async with closed_meanwhile(answering(b"a", 30.0), Caller()) as client:
        assert client.is_closed
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == "closing 'client' with 1 exchanges open, after 0.05 s"


# --- a server that ends the lifespan before it cancels exchanges ------------------------------


@contextlib.asynccontextmanager
async def ended_lifespan(
    transport: str, caller: Caller, records: list[ExchangeRecord], answer: str, **options: Any
) -> AsyncIterator[Exception | None]:
    """End the lifespan during an exchange, as gunicorn's ASGI worker does. Yield what it raised."""
    raised: Exception | None = None

    async def call() -> None:
        nonlocal raised
        try:
            await response(caller.scope, caller.receive, caller.send)
        except Exception as exc:
            raised = exc

    make = AsyncioTransport if transport == "fast" else httpx.AsyncHTTPTransport
    with testing.Upstream() as upstream:
        upstream.get("/stream").chunks(b"a", 60.0)
        upstream.get("/stall").stall()
        lifespan = client_lifespan(
            base_url=upstream.url, transport=make(), observers=[records.append], timeout=60
        )
        async with anyio.create_task_group() as group, lifespan(None) as state:
            client: Any = state["client"]
            request = client.build_request("GET", answer)
            response = StreamedResponse(client, request, **options)
            group.start_soon(call)
            await aeventually(lambda: caller.body if answer == "/stream" else upstream.requests)
        yield raised


@pytest.fixture(params=["httpx", pytest.param("fast", marks=pytest.mark.asyncio_only)])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def _short_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifespan_module, "DRAIN_TIMEOUT", 0.05)


def check_record(records: list[ExchangeRecord], caplog: pytest.LogCaptureFixture) -> None:
    [record] = records
    assert (record.outcome, record.exception) == (Outcome.CANCELLED, None)
    assert [line.getMessage() for line in caplog.records if line.levelno > logging.INFO] == [
        "closing 'client' with 1 exchanges open, after 0.05 s"
    ]


@pytest.mark.usefixtures("_short_drain")
async def test_stream_cut_by_lifespan_ends_as_cancelled(
    transport: str, caplog: pytest.LogCaptureFixture
) -> None:
    caller, records, seen = Caller(), list[ExchangeRecord](), list[Exception]()

    def on_stream_error(exc: Exception) -> bytes:
        seen.append(exc)
        return b"bye"

    options = {"on_stream_error": on_stream_error}
    async with ended_lifespan(transport, caller, records, "/stream", **options) as raised:
        assert raised is None
    assert (caller.body, caller.complete) == (b"abye", True)
    assert [type(exc) for exc in seen] == [ExchangeCancelled]
    check_record(records, caplog)


@pytest.mark.usefixtures("_short_drain")
@pytest.mark.parametrize("answer", ["/stream", "/stall"])
async def test_exchange_cut_by_lifespan_raises_exchange_cancelled(
    transport: str, answer: str, caplog: pytest.LogCaptureFixture
) -> None:
    caller, records = Caller(), list[ExchangeRecord]()
    async with ended_lifespan(transport, caller, records, answer) as raised:
        assert type(raised) is ExchangeCancelled
    assert not caller.complete
    check_record(records, caplog)


@pytest.mark.asyncio_only
@pytest.mark.usefixtures("_short_drain")
async def test_websocket_cut_by_lifespan_closes_with_1001(
    transport: str, caplog: pytest.LogCaptureFixture
) -> None:
    sent, records = list[Message](), list[ExchangeRecord]()
    coming: list[Message] = [{"type": "websocket.connect"}]

    async def hello(connection: ServerConnection) -> None:
        await connection.send("hello")
        await connection.wait_closed()

    async def receive() -> Message:
        if not coming:
            await anyio.sleep_forever()
        return coming.pop()

    async def send(message: Message) -> None:
        sent.append(message)

    make = AsyncioTransport if transport == "fast" else httpx.AsyncHTTPTransport
    async with serve(hello, "127.0.0.1", 0) as server, anyio.create_task_group() as group:
        port = server.sockets[0].getsockname()[1]
        lifespan = client_lifespan(
            base_url=f"http://127.0.0.1:{port}", transport=make(), observers=[records.append]
        )
        async with lifespan(None) as state:
            scope = {**Caller().scope, "type": "websocket", "scheme": "ws", "state": dict(state)}
            group.start_soon(ReverseProxy(), scope, receive, send)
            await aeventually(lambda: len(sent) == 2)
    assert [message["type"] for message in sent] == [
        "websocket.accept", "websocket.send", "websocket.close",
    ]  # fmt: skip
    assert sent[-1]["code"] == 1001
    check_record(records, caplog)


async def test_upstream_failure_before_lifespan_ends_is_a_failure() -> None:
    upstream, records = answering(httpx.ReadError("reset")), list[ExchangeRecord]()
    async with client_lifespan(upstream.client, observers=[records.append])(None) as state:
        client: Any = state["client"]
        response = StreamedResponse(client, client.build_request("GET", "/"))
        caller = Caller()
        with pytest.raises(UpstreamError):
            await response(caller.scope, caller.receive, caller.send)
    assert records[0].outcome.is_failure

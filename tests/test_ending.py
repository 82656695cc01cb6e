"""Exchanges that are cancelled in the middle of their body, and clients that close meanwhile."""

import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from starlette.types import Message

from asgi_upstream import ExchangeCancelled, StreamedResponse, client_lifespan
from asgi_upstream import lifespan as lifespan_module
from asgi_upstream._exchange import exchange as exchange_module
from asgi_upstream.testing import aeventually
from tests.asgi import Caller, Upstream, answering

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def cancelled(caller: Caller, frame: Callable[[Exception], bytes], before: float = 0) -> None:
    """Call a response whose upstream falls silent, and cancel that."""
    upstream = answering(b"a", 30.0, before=before)
    client = upstream.client()
    response = StreamedResponse(client, client.build_request("GET", "/"), on_stream_error=frame)
    with anyio.move_on_after(0.05) as scope:
        await response(caller.scope, caller.receive, caller.send)
    assert scope.cancelled_caught
    assert upstream.open == 0


async def test_an_exchange_that_is_cancelled_mid_body_ends_with_its_error_frame() -> None:
    caller, seen = Caller(), list[Exception]()

    def frame(exc: Exception) -> bytes:
        seen.append(exc)
        return b"frame"

    await cancelled(caller, frame)
    assert (caller.body, caller.complete) == (b"aframe", True)
    assert [type(exc) for exc in seen] == [ExchangeCancelled]


async def test_an_exchange_that_is_cancelled_before_its_start_sends_nothing() -> None:
    caller = Caller()
    await cancelled(caller, lambda exc: b"frame", before=30)
    assert caller.messages == []


async def test_an_exchange_that_is_cancelled_is_not_logged_as_a_failure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    await cancelled(Caller(), lambda exc: b"frame")
    assert caplog.records == []


async def test_an_error_frame_that_raises_is_logged_and_the_cancellation_passes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def frame(exc: Exception) -> bytes:
        raise ValueError("broken")

    caller = Caller()
    await cancelled(caller, frame)
    assert not caller.complete
    [record] = caplog.records
    assert record.getMessage() == "the on_stream_error of a cancelled exchange failed"


async def test_a_caller_who_takes_no_error_frame_holds_a_cancellation_up_for_a_moment_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Deaf(Caller):
        async def send(self, message: Message) -> None:
            if message.get("body") == b"frame":
                await anyio.sleep(30)
            await super().send(message)

    monkeypatch.setattr(exchange_module, "ERROR_CHUNK_TIMEOUT", 0.05)
    caller = Deaf()
    with anyio.fail_after(10):
        await cancelled(caller, lambda exc: b"frame")
    assert not caller.complete


# The client.


@contextlib.asynccontextmanager
async def closed_meanwhile(upstream: Upstream, caller: Caller) -> AsyncIterator[Any]:
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


async def test_a_client_closes_after_a_bound_though_an_exchange_is_open(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lifespan_module, "DRAIN_TIMEOUT", 0.05)
    async with closed_meanwhile(answering(b"a", 30.0), Caller()) as client:
        assert client.is_closed
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == "closing 'client' with 1 exchanges open, after 0.05 s"

"""The deadline and the disconnect of an exchange, without an exchange."""

import asyncio
import contextlib

import pytest
from starlette.types import Message

from asgi_upstream._exchange import disconnect
from asgi_upstream._exchange.scope import ExchangeScope


@pytest.mark.asyncio
@pytest.mark.parametrize("plain", [False, True])
async def test_disconnect_at_the_end_does_not_cancel_the_task(
    plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disconnect, "LISTEN_DELAY", 0)
    receiving = asyncio.Event()

    async def receive() -> Message:
        receiving.set()
        # Like middleware that answers its own cancellation with a message.
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async with ExchangeScope(receive, None, plain=plain) as scope:
        scope.start_listening()
        await receiving.wait()
    assert not scope.cancelled_caught
    await asyncio.sleep(0)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0

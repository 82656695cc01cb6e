"""Closing an upstream response, in a task that may be cancelled at any moment."""

import asyncio
import types
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
)
from contextlib import AsyncExitStack
from typing import Any

import anyio
import httpx

from .._httpx.workarounds import discard_trailing_data
from .._logging import logger
from .body import ResumableBody

CLOSE_TIMEOUT = 5.0
"""Seconds that closing an upstream response may take."""


async def close_upstream(upstream: httpx.Response, *bodies: AsyncIterator[bytes]) -> None:
    """Close all, even in a task that is being cancelled, but never wait for long.

    Reads that are in progress end first, because a connection that is read cannot be closed.
    """

    async def close() -> None:
        with anyio.move_on_after(CLOSE_TIMEOUT, shield=True) as scope:
            async with AsyncExitStack() as stack:  # goes on after a cancellation
                for body in reversed(bodies):
                    if isinstance(body, AsyncGenerator):
                        stack.push_async_callback(_close_resource, body.aclose)
                stack.push_async_callback(_close_response, upstream)
                for body in reversed(bodies):
                    if isinstance(body, ResumableBody):
                        stack.push_async_callback(_close_resource, body.stop)
        if scope.cancelled_caught:
            logger.warning("closing an upstream response took more than %g s", CLOSE_TIMEOUT)

    await defer_cancellation(close())


async def _close_response(upstream: httpx.Response) -> None:
    discard_trailing_data(upstream)
    await _close_resource(upstream.aclose)


async def _close_resource(close: Callable[[], Awaitable[None]]) -> None:
    try:
        await close()
    except Exception:
        logger.warning("closing an upstream response failed", exc_info=True)


@types.coroutine
def defer_cancellation(coroutine: Coroutine[Any, Any, None]) -> Generator[Any, Any, None]:
    """Await it, and put off a cancellation that comes while it only lets others run.

    A shielded scope does not hold off `task.cancel()` of asyncio, which servers and timeouts use.
    In the one turn of the event loop that closing takes in httpcore, it would leave the connection
    in the pool for good. Closing in a task of its own would cost each exchange more.
    """
    deferred: asyncio.CancelledError | None = None
    thrown: BaseException | None = None
    sent: Any = None
    while True:
        try:
            yielded = coroutine.throw(thrown) if thrown is not None else coroutine.send(sent)
        except StopIteration:
            if deferred is not None:
                raise deferred from None
            return
        sent, thrown = None, None
        try:
            sent = yield yielded
        except BaseException as exc:
            if yielded is None and isinstance(exc, asyncio.CancelledError):
                deferred = exc
            else:
                thrown = exc

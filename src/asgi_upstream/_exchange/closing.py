"""Closing an upstream response, in a task that may be cancelled at any moment."""

import asyncio
import types
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Generator
from typing import Any

import anyio
import httpx

from .._httpx.workarounds import discard_trailing_data
from .._logging import logger

CLOSE_TIMEOUT = 5.0
"""Seconds that closing an upstream response may take."""


async def close_upstream(upstream: httpx.Response, *bodies: AsyncIterator[bytes]) -> None:
    """Close all, also in a task that is being cancelled, but never wait for long."""

    async def close() -> None:
        with anyio.move_on_after(CLOSE_TIMEOUT, shield=True) as scope:
            for resource in (upstream, *bodies):
                try:
                    if resource is upstream:
                        discard_trailing_data(upstream)
                        await upstream.aclose()
                    elif isinstance(resource, AsyncGenerator):
                        await resource.aclose()
                except Exception:
                    logger.warning("closing an upstream response failed", exc_info=True)
        if scope.cancelled_caught:
            logger.warning("closing an upstream response took more than %g s", CLOSE_TIMEOUT)

    await defer_cancellation(close())


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

"""Closing an upstream response, in a task that may be cancelled at any moment."""

import asyncio
import types
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Generator
from typing import Any

import anyio
import httpx

from .httpcore_pool import close_if_more_came
from .log import logger

CLOSE_TIMEOUT = 5.0
"""Seconds that closing an upstream response may take."""


async def close_upstream(upstream: httpx.Response, *bodies: AsyncIterator[bytes]) -> None:
    """Close all, also in a task that is being cancelled, but never wait for long."""

    async def close() -> None:
        with anyio.move_on_after(CLOSE_TIMEOUT, shield=True) as scope:
            for one in (upstream, *bodies):
                try:
                    if one is upstream:
                        close_if_more_came(upstream)
                        await upstream.aclose()
                    elif isinstance(one, AsyncGenerator):
                        await one.aclose()
                except Exception:
                    logger.warning("closing an upstream response failed", exc_info=True)
        if scope.cancelled_caught:
            logger.warning("closing an upstream response took more than %g s", CLOSE_TIMEOUT)

    await uninterrupted(close())


@types.coroutine
def uninterrupted(coroutine: Coroutine[Any, Any, None]) -> Generator[Any, Any, None]:
    """Await it, and put off a cancellation that comes while it only lets others run.

    A shielded scope does not hold off `task.cancel()` of asyncio, which servers and timeouts use.
    In the one turn of the event loop that closing takes in httpcore, it would leave the connection
    in the pool for good. Closing in a task of its own would cost each exchange more.
    """
    put_off: asyncio.CancelledError | None = None
    thrown: BaseException | None = None
    sent: Any = None
    while True:
        try:
            waits_for = coroutine.throw(thrown) if thrown is not None else coroutine.send(sent)
        except StopIteration:
            if put_off is not None:
                raise put_off from None
            return
        sent, thrown = None, None
        try:
            sent = yield waits_for
        except BaseException as exc:
            if waits_for is None and isinstance(exc, asyncio.CancelledError):
                put_off = exc
            else:
                thrown = exc

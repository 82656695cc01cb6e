"""Closes an upstream response, in a task that may be cancelled at any moment."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from functools import partial

import anyio
import httpx

from .._httpx.cancellation import defer_cancellation
from .._httpx.flavors import get_library
from .._httpx.workarounds import clean_up_after, end_connection_if_unusable
from .._logging import logger
from .resumable import ResumableBody
from .undelimited import find_delimiting_tls

CLOSE_TIMEOUT = 5.0
"""Seconds that closing an upstream response may take."""


async def close_upstream(upstream: httpx.Response, *bodies: AsyncIterator[bytes]) -> None:
    """Close all, even in a task that is being cancelled, but never wait for long.

    Reads that are in progress end first, because a connection that is read cannot be closed. The
    pool is cleaned up last, because an earlier cancellation may have hit httpcore while it closed
    the response.
    """

    async def close() -> None:
        with anyio.move_on_after(CLOSE_TIMEOUT, shield=True) as scope:
            await _close_all(
                [
                    *(body.stop for body in bodies if isinstance(body, ResumableBody)),
                    partial(_close_response, upstream),
                    *(body.aclose for body in bodies if isinstance(body, AsyncGenerator)),
                    partial(clean_up_after, upstream),
                ]
            )
        if scope.cancelled_caught:
            logger.warning("closing an upstream response took more than %g s", CLOSE_TIMEOUT)

    try:
        await defer_cancellation(close())
    finally:
        # The stream of httpx's client refers to the response, which would be a cycle.
        upstream.stream = get_library(type(upstream)).AsyncByteStream()


async def close_generator(generator: AsyncGenerator[bytes]) -> None:
    """Close a generator, even in a task that is being cancelled, but never wait for long."""

    async def close() -> None:
        with anyio.move_on_after(CLOSE_TIMEOUT, shield=True):
            await _close_resource(generator.aclose)

    await defer_cancellation(close())


async def _close_all(closers: list[Callable[[], Awaitable[None]]]) -> None:
    """Call each function, the others even after one was cancelled."""
    for position, close in enumerate(closers, 1):
        try:
            await _close_resource(close)
        except BaseException:
            await _close_all(closers[position:])
            raise


async def _close_response(upstream: httpx.Response) -> None:
    end_connection_if_unusable(upstream, has_ended=find_delimiting_tls(upstream) is not None)
    await upstream.aclose()


async def _close_resource(close: Callable[[], Awaitable[None]]) -> None:
    try:
        await close()
    except Exception:
        logger.warning("closing an upstream response failed", exc_info=True)

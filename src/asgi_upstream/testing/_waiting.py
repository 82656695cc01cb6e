"""Waits for a condition, for a limited time."""

import time
from collections.abc import Callable

import anyio

POLL_INTERVAL = 0.005
"""Seconds between two checks."""


def eventually(condition: Callable[[], object], within: float = 5.0) -> float:
    """Wait until a condition holds, and return how long that took, in seconds.

    Arguments:
        condition: Called repeatedly until its result is true.
        within: Maximum time to wait, in seconds.

    Raises:
        AssertionError: If the condition does not hold in time.
    """
    start = time.monotonic()
    while not condition():
        _check(start, within)
        time.sleep(POLL_INTERVAL)
    return time.monotonic() - start


async def aeventually(condition: Callable[[], object], within: float = 5.0) -> float:
    """Wait like `eventually` in an async test, on asyncio or trio. Other tasks keep running."""
    start = time.monotonic()
    while not condition():
        _check(start, within)
        await anyio.sleep(POLL_INTERVAL)
    return time.monotonic() - start


def _check(start: float, within: float) -> None:
    if time.monotonic() - start >= within:
        raise AssertionError(f"condition not met within {within:g} s")

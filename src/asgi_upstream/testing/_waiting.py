"""Waiting for what happens elsewhere, for a bounded time."""

import time
from collections.abc import Callable

import anyio

POLL_INTERVAL = 0.005
"""Seconds between two looks."""


def eventually(condition: Callable[[], object], within: float = 5.0) -> float:
    """Wait until the condition holds; the seconds that took.

    Arguments:
        within: seconds to wait at most.

    Raises:
        AssertionError: it did not hold in time.
    """
    began = time.monotonic()
    while not condition():
        _check(began, within)
        time.sleep(POLL_INTERVAL)
    return time.monotonic() - began


async def aeventually(condition: Callable[[], object], within: float = 5.0) -> float:
    """`eventually` for async tests, on asyncio and trio: others run while it waits."""
    began = time.monotonic()
    while not condition():
        _check(began, within)
        await anyio.sleep(POLL_INTERVAL)
    return time.monotonic() - began


def _check(began: float, within: float) -> None:
    if time.monotonic() - began >= within:
        raise AssertionError(f"condition not met within {within:g} s")

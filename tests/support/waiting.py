"""Waits for a condition, longer than any condition takes on a busy machine."""

from collections.abc import Callable

from asgi_upstream import testing

LONG = 60.0
"""Seconds."""


def eventually(condition: Callable[[], object], within: float = LONG) -> float:
    """Wait until a condition holds, and return how long that took, in seconds."""
    return testing.eventually(condition, within)


async def aeventually(condition: Callable[[], object], within: float = LONG) -> float:
    """Wait like `eventually` in an async test."""
    return await testing.aeventually(condition, within)

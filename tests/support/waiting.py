"""Waits for a condition, longer than any condition takes on a busy machine."""

from collections.abc import Callable

from asgi_upstream import testing

LONG = 60.0
"""Seconds."""

GROWING_LIMITS = 0.2, 2.0, 20.0
"""Seconds, to try in turn where a limit must pass after the head of a response has come.

On a busy machine a short limit can pass before, and then the attempt says nothing.
"""


def eventually(condition: Callable[[], object], within: float = LONG) -> float:
    """Wait until a condition holds, and return how long that took, in seconds."""
    return testing.eventually(condition, within)


async def aeventually(condition: Callable[[], object], within: float = LONG) -> float:
    """Wait like `eventually` in an async test."""
    return await testing.aeventually(condition, within)

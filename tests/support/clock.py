"""Clocks on which a wait takes no time, so that no test depends on the speed of the machine."""

import asyncio
import selectors
from typing import Any

import trio.testing

RATE = 0.1
"""How fast the clocks run between their jumps, so that a task that never waits sees time pass."""


class _JumpingSelector(selectors.DefaultSelector):
    """Moves the clock on by the time that the loop would wait."""

    def __init__(self) -> None:
        super().__init__()
        self.skipped = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            return super().select(None)  # for a signal, or a thread
        events = super().select(0)
        if not events:
            self.skipped += max(0.0, timeout)
        return events


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop that jumps to its next timer as soon as nothing else is ready.

    A thread or a socket takes real time, so the timers of a test that waits for one pass too early.
    """

    def __init__(self) -> None:
        self._clock = _JumpingSelector()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.skipped + RATE * super().time()


def make_jumping_backend(name: str) -> tuple[str, dict[str, object]]:
    """Return the backend of anyio with such a clock."""
    if name == "trio":
        return "trio", {"clock": trio.testing.MockClock(rate=RATE, autojump_threshold=0)}
    return name, {"loop_factory": JumpingLoop}

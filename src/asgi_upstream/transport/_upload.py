"""Sends a request body while the response is being read."""

import asyncio
from collections.abc import AsyncIterator
from typing import Protocol

from ._serializer import BodyFramer

CANCEL_TIMEOUT = 1
"""Seconds to wait for a body that does not stop when it is cancelled."""


class UploadTarget(Protocol):
    """The connection."""

    async def write(self, data: bytes, timeout: float | None) -> None: ...
    def complete_upload(self) -> None: ...
    def fail(self, failure: BaseException) -> None: ...


class Upload:
    """Sends the body in a task of its own.

    Attributes:
        in_progress: Whether the body is being sent. The upstream may be silent until it has all.
    """

    __slots__ = ("_target", "in_progress", "task")

    def __init__(
        self,
        target: UploadTarget,
        loop: asyncio.AbstractEventLoop,
        content: AsyncIterator[bytes],
        framer: BodyFramer,
        timeout: float | None,
    ) -> None:
        self._target = target
        self.in_progress: bool = True
        self.task: asyncio.Task[None] = loop.create_task(self._send(content, framer, timeout))

    def stop(self) -> None:
        """Stop sending. The upload stays incomplete."""
        self.in_progress = False
        self.task.cancel()

    async def aclose(self) -> None:
        """Stop sending, and wait until the body's iterator has ended."""
        self.stop()
        await asyncio.wait([self.task], timeout=CANCEL_TIMEOUT)

    async def _send(
        self, content: AsyncIterator[bytes], framer: BodyFramer, timeout: float | None
    ) -> None:
        target = self._target
        try:
            async for chunk in content:
                await target.write(framer.frame(chunk), timeout)
            if end := framer.finish():
                await target.write(end, timeout)
        except asyncio.CancelledError as exc:
            if self.in_progress:  # the iterator was cancelled, and not this task
                target.fail(exc)
                raise
            # The exception of a stopped task would refer to this upload, which refers to the task.
        except Exception as exc:
            target.fail(exc)
        else:
            self.in_progress = False
            target.complete_upload()

"""Receives the caller's messages ahead of the endpoint, to notice a disconnect."""

import asyncio
from collections import deque
from typing import Any

import anyio
import anyio.lowlevel
from starlette.types import Message, Receive

from .scope import find_asyncio_loop

MAX_READ_AHEAD = 1024 * 1024
"""Bytes of the caller's messages that are kept for the endpoint."""

_MESSAGE_DELAY = 20
"""Turns of the event loop that a message may take through middleware."""


class Inbox:
    """Receives the caller's messages ahead of the endpoint, and keeps them for it."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._unfinished: asyncio.Future[Message] | None = None  # only on asyncio
        self._messages: deque[Message] = deque()
        self._size = 0
        self._listening = True
        self._receiving = self._stopping = False
        self._body_complete = False
        self._changed = anyio.Event()

    async def stop_gently(self) -> None:
        """Wait for a message that is on its way, because a cancelled `receive` may lose it.

        BaseHTTPMiddleware's does. After the body's end there is only the disconnect to lose.
        """
        self._stopping = True
        for _ in range(_MESSAGE_DELAY):
            if not self._receiving or self._body_complete:
                break
            await anyio.lowlevel.checkpoint()

    def release(self, connection: Any) -> None:
        """Give `receive` back, unless there are messages that the endpoint has not read yet."""
        is_empty = not self._messages and self._unfinished is None
        if is_empty and connection._receive == self.receive:
            connection._receive = self._receive

    def stop(self) -> None:
        """Stop receiving ahead. The endpoint gets the kept messages, and then receives itself."""
        self._listening = False
        self._notify()

    async def receive_ahead(self) -> Message:
        """Receive the next message and keep it."""
        while self._size > MAX_READ_AHEAD or self._stopping:
            await self._changed.wait()
        self._receiving = True
        try:
            message = await self._receive_next()
        finally:
            self._receiving = False
        self._messages.append(message)
        self._size += _size(message)
        self._notify()
        return message

    async def receive(self) -> Message:
        """Return the next message to the endpoint."""
        while not self._messages:
            if not self._listening:
                return await self._receive_next()
            await self._changed.wait()
        if self._messages[0]["type"].endswith(".disconnect"):
            return self._messages[0]  # servers repeat it
        message = self._messages.popleft()
        self._size -= _size(message)
        self._notify()
        return message

    async def _receive_next(self) -> Message:
        """Return the server's next message, and lose none if this is cancelled.

        Granian takes a message from the connection in another thread. Cancelling its `receive`, or
        that of a middleware, at that moment loses the message. So on asyncio, `receive` runs in a
        task that is not cancelled, and the next call waits for it. After the end of the body, it is
        awaited directly, because only the disconnect can be lost.
        """
        if self._unfinished is None:
            receiving = self._receive()
            if not asyncio.isfuture(receiving) and self._may_cancel_receive():
                return self._note_end(await receiving)
            self._unfinished = asyncio.ensure_future(receiving)
        unfinished = self._unfinished
        try:
            message = await asyncio.shield(unfinished)
        except BaseException as exc:
            # If only this call was cancelled, the next call gets the message.
            if not isinstance(exc, asyncio.CancelledError) or unfinished.cancelled():
                self._unfinished = None
            raise
        finally:
            del unfinished  # An exception in it would lead back here, which is a cycle.
        self._unfinished = None
        return self._note_end(message)

    def _may_cancel_receive(self) -> bool:
        if self._body_complete or not self._listening or find_asyncio_loop() is None:
            return True
        # hypercorn's loses nothing, and reports a disconnect only once, which the task would take.
        return isinstance(getattr(self._receive, "__self__", None), asyncio.Queue)

    def _note_end(self, message: Message) -> Message:
        if message["type"] == "http.request":
            self._body_complete = not message.get("more_body", False)
        return message

    def _notify(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()


def _size(message: Message) -> int:
    return sum(len(message.get(key) or "") for key in ("body", "bytes", "text"))

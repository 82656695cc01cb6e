"""The block of `cancel_on_disconnect`."""

from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from types import TracebackType
from typing import Any

import anyio
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.types import Receive

from .. import errors
from ..records import Outcome
from .disconnect import wait_for_disconnect
from .downstream import CLIENT_CLOSED_REQUEST
from .inbox import Inbox
from .recording import route_template


class _ClientClosedRequest(HTTPException):
    """Ends a request after its caller has disconnected."""

    def __init__(self) -> None:
        super().__init__(CLIENT_CLOSED_REQUEST, "The caller disconnected")


class CancellableBlock(AbstractAsyncContextManager[None]):
    """A cancel scope around a task group, in which a task listens for the disconnect."""

    def __init__(self, connection: HTTPConnection, deadline: float | None) -> None:
        self.connection = connection
        self._deadline = deadline
        self._disconnected = False
        self._scope = anyio.CancelScope()
        self._listener_scope = anyio.CancelScope()

    @property
    def outcome(self) -> Outcome:
        """The outcome of a call that is cancelled in the block."""
        if self._disconnected:
            return Outcome.CALLER_DISCONNECTED_BEFORE_HEADERS
        return Outcome.DEADLINE if self._scope.cancel_called else Outcome.CANCELLED

    async def __aenter__(self) -> None:
        if self._deadline is not None:
            self._scope.deadline = anyio.current_time() + self._deadline
        connection: Any = self.connection
        self._receive: Receive = connection._receive
        self._inbox = Inbox(self._receive)
        self._scope.__enter__()
        self._group = anyio.create_task_group()
        await self._group.__aenter__()
        self._group.start_soon(self._listen)
        connection._receive = self._inbox.receive
        self._outer_block = current_block.get()
        current_block.set(self)

    async def _listen(self) -> None:
        with self._listener_scope:
            try:
                self._disconnected = await wait_for_disconnect(self._inbox.receive_ahead)
            finally:
                self._inbox.stop()
            if self._disconnected:
                self._scope.cancel()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        current_block.set(self._outer_block)
        interruption = await self._stop_listener(gently=exc is None)
        self._inbox.release(self.connection)
        error = exc
        if interruption is not None and (exc is None or isinstance(exc, Exception)):
            error = interruption
        cancelled = self._exit_scope(error)
        if exc is None:
            if error is not None and not cancelled:
                raise error
            return False
        if cancelled or isinstance(error, Exception):
            cause = exc if isinstance(exc, Exception) else None
            if self._disconnected:
                raise _ClientClosedRequest from cause
            if self._scope.cancel_called:
                timeout = errors.deadline_error(self._deadline)
                errors.log_failure(timeout, None, route_template(self.connection.scope))
                raise timeout from cause
        if error is exc or error is None:
            return False
        raise error

    async def _stop_listener(self, *, gently: bool) -> BaseException | None:
        """End the listener and its group, and return a cancellation that arrives meanwhile."""
        interruption: BaseException | None = None
        try:
            if gently:
                await self._inbox.stop_gently()
        except BaseException as exc:
            interruption = exc
        self._listener_scope.cancel()
        try:
            await self._group.__aexit__(None, None, None)
        except BaseException as exc:
            interruption = exc
        return interruption

    def _exit_scope(self, error: BaseException | None) -> bool:
        """Leave the scope, and return whether it was the reason for the cancellation."""
        if error is None:
            self._scope.__exit__(None, None, None)
            return False
        return bool(self._scope.__exit__(type(error), error, error.__traceback__))


current_block: ContextVar[CancellableBlock | None] = ContextVar(
    "asgi_upstream.cancel_on_disconnect", default=None
)
"""The innermost block that runs now. A call in it belongs to its caller's request."""
